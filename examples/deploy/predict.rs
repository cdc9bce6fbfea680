// Predicts with an exported LeNet whose weights are linked in: ./predict FOLDER-OF-THE-BUNDLE
use std::ffi::{c_char, c_int, c_void, CStr};
use std::{env, fs, process, ptr};

#[repr(C)]
struct Memory {
    folded: *mut f32,
    folded_bytes: usize,
    arena: *mut c_void,
    arena_bytes: usize,
}

#[link(name = "lenet", kind = "static")]
#[link(name = "m")]
extern "C" {
    static lenet_weights: [u32; 0];
    fn lenet_context_bytes() -> usize;
    fn lenet_weights_bytes() -> usize;
    fn lenet_scratch_bytes() -> usize;
    fn lenet_init(context: *mut c_void, bytes: usize, memory: *const Memory, seed: u64) -> c_int;
    fn lenet_load(context: *mut c_void, file: *const c_void, bytes: usize) -> c_int;
    fn lenet_message(context: *const c_void) -> *const c_char;
    fn lenet_predict(
        context: *mut c_void, batch: i64, x: *const f32, x_bytes: usize, logits: *mut f32, logits_bytes: usize,
    ) -> c_int;
}

// Blocks start at multiples of 64 bytes.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

fn block(bytes: usize) -> Vec<Line> {
    vec![Line([0; 64]); bytes.div_ceil(64)]
}

fn main() {
    let folder = env::args().nth(1).unwrap_or(".".into());
    let path = format!("{folder}/check/predict.in.x.bin");
    let bytes = fs::read(&path).unwrap_or_else(|error| {
        eprintln!("{path}: {error}");
        process::exit(1)
    });
    let images: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let batch = images.len() / (32 * 32);
    let mut logits = vec![0f32; batch * 10];
    let (mut context, mut arena) = unsafe { (block(lenet_context_bytes()), block(lenet_scratch_bytes())) };
    let context = context.as_mut_ptr() as *mut c_void;
    let failed = unsafe {
        let memory = Memory {
            folded: ptr::null_mut(), // lenet_load finds it
            folded_bytes: 0,
            arena: arena.as_mut_ptr() as *mut c_void,
            arena_bytes: lenet_scratch_bytes(),
        };
        lenet_init(context, lenet_context_bytes(), &memory, 0) != 0
            || lenet_load(context, lenet_weights.as_ptr() as *const c_void, lenet_weights_bytes()) != 0
            || lenet_predict(
                context, batch as i64, images.as_ptr(), images.len() * 4, logits.as_mut_ptr(), logits.len() * 4,
            ) != 0
    };
    if failed {
        eprintln!("{}", unsafe { CStr::from_ptr(lenet_message(context)) }.to_string_lossy());
        process::exit(1);
    }
    for value in logits {
        println!("{value}");
    }
}
