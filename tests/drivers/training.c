/* training.c: trains an exported net as a program would, and as one should not.
 *
 *   steps THREADS SEED  STEPS steps, with batches of several sizes; writes losses.bin and trained.weights
 *   contexts            eight threads with contexts and blocks of their own
 *   arena               for every entry point, refuses an arena that is a byte too small, and works in one of exactly the
 *                       size that is stated
 *   overrun             writes a byte behind such an arena, which a sanitizer must see
 *   flips               refuses damaged weights
 *   sizes               what the functions tell and what the macros state
 */
#include "common.h"

#include <stdio.h>

static _Alignas(64) unsigned char weights[NET_WEIGHTS_BYTES];
static float images[NET_BATCH * IMAGE];
static int32_t labels[NET_BATCH];

typedef struct {
    net_memory memory;
    net_context *context;
    unsigned char *trained; /* a weights file */
    int64_t batch;
    float loss[STEPS];
} trainer;

#define GIVE(block, count) \
    .block = exactly(sizeof(float) * (count)), .block##_bytes = sizeof(float) * (count)

static trainer make_trainer(int64_t batch, size_t arena_bytes)
{
    const trainer made = {
        .memory = {GIVE(params, NET_PARAMS), GIVE(grads, NET_GRADS), GIVE(slots, NET_SLOTS), GIVE(state, NET_STATE),
            GIVE(folded, NET_FOLDED), .arena = exactly(arena_bytes), .arena_bytes = arena_bytes},
        .context = exactly(net_context_bytes()), .trained = exactly(NET_WEIGHTS_BYTES), .batch = batch};
    return made;
}

static void load(trainer *t)
{
    require(net_init(t->context, net_context_bytes(), &t->memory, 0) == NET_OK, "no context");
    require(net_load(t->context, weights, sizeof weights) == NET_OK, "the weights were refused");
}

static int train_step(trainer *t, int64_t batch, float *loss)
{
    const size_t count = (size_t)batch;
    return net_train_step(t->context, batch, images, count * IMAGE * sizeof(float), labels, count * sizeof(int32_t),
        loss, sizeof *loss, LEARNING_RATE, 1);
}

static void store(trainer *t)
{
    require(net_store(t->context, t->trained, NET_WEIGHTS_BYTES) == NET_OK, "the weights cannot be stored");
}

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *const file = fopen(path, "wb");
    require(file != NULL && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0, path);
}

static void write_steps(int threads, const char *seed)
{
    trainer t = make_trainer(NET_BATCH, NET_ARENA_TRAIN_STEP_BYTES);
    load(&t);
    net_set_threads(t.context, threads);
    if (seed != NULL) net_set_seed(t.context, strtoull(seed, NULL, 10));
    for (int step = 0; step < STEPS; step++)
        require(train_step(&t, NET_BATCH - step % 2, &t.loss[step]) == NET_OK, "a step failed");
    store(&t);
    write_file("losses.bin", t.loss, sizeof t.loss);
    write_file("trained.weights", t.trained, NET_WEIGHTS_BYTES);
}

static void *train_twice(void *argument)
{
    trainer *const t = argument;
    load(t);
    for (int step = 0; step < 2; step++) require(train_step(t, t->batch, &t->loss[step]) == NET_OK, "a step failed");
    store(t);
    return NULL;
}

static void compare_contexts(void)
{
    trainer alone[2], together[CONTEXTS];
    for (int k = 0; k < 2; k++) {
        alone[k] = make_trainer(k + 1, NET_ARENA_TRAIN_STEP_BYTES);
        train_twice(&alone[k]);
    }
    for (int k = 0; k < CONTEXTS; k++) together[k] = make_trainer(k % 2 + 1, NET_ARENA_TRAIN_STEP_BYTES);
    in_threads(train_twice, together, sizeof *together);
    for (int k = 0; k < CONTEXTS; k++) {
        const trainer *const want = &alone[k % 2];
        require(memcmp(together[k].loss, want->loss, sizeof want->loss) == 0, "a thread has another loss");
        require(memcmp(together[k].trained, want->trained, sizeof weights) == 0, "a thread has other weights");
    }
}

enum { TRAIN_STEP, EVALUATE, FOLD, PREDICT, ENTRIES };

static int call(trainer *t, int entry)
{
    float loss, logits[NET_BATCH * CLASSES];
    switch (entry) {
    case TRAIN_STEP: return train_step(t, NET_BATCH, &loss);
    case EVALUATE:
        return net_evaluate(t->context, NET_BATCH, images, sizeof images, labels, sizeof labels, &loss, sizeof loss);
    case FOLD: return net_fold(t->context);
    default: return net_predict(t->context, NET_BATCH, images, sizeof images, logits, sizeof logits);
    }
}

static void try_arenas(void)
{
    static const size_t needed[ENTRIES] = {NET_ARENA_TRAIN_STEP_BYTES, NET_ARENA_EVALUATE_BYTES, NET_ARENA_FOLD_BYTES,
        NET_ARENA_PREDICT_BYTES};
    for (int entry = 0; entry < ENTRIES; entry++) {
        if (needed[entry] > 0) {
            trainer small = make_trainer(NET_BATCH, needed[entry] - 1);
            load(&small);
            printf("%d ", call(&small, entry));
            printf("%s\n", net_message(small.context));
            store(&small);
            require(memcmp(small.trained, weights, sizeof weights) == 0, "a refused call changed a block");
        }
        trainer exact = make_trainer(NET_BATCH, needed[entry]);
        load(&exact);
        require(call(&exact, entry) == NET_OK, "an arena of the stated size was refused");
    }
}

/* A block that no load has written holds what `exactly` filled it with. */
static void require_untouched(const void *block, size_t bytes)
{
    for (size_t k = 0; k < bytes; k++)
        require(((const unsigned char *)block)[k] == FILLED, "a refused file changed a block");
}

static void damage(void)
{
    trainer t = make_trainer(NET_BATCH, NET_ARENA_BYTES);
    const net_memory *const m = &t.memory;
    require(net_init(t.context, net_context_bytes(), m, 7) == NET_OK, "no context");
    unsigned char *const copy = memcpy(exactly(sizeof weights), weights, sizeof weights);
    refuse_flips(t.context, copy);
    require_untouched(m->params, m->params_bytes);
    require_untouched(m->grads, m->grads_bytes);
    require_untouched(m->slots, m->slots_bytes);
    require_untouched(m->state, m->state_bytes);
    require_untouched(m->folded, m->folded_bytes);
    require_untouched(m->arena, m->arena_bytes);
    require(net_load(t.context, copy, sizeof weights) == NET_OK, "the file was refused once it was whole again");
    store(&t);
    require(memcmp(t.trained, weights, sizeof weights) == 0, "load and store give another file");
}

static void print_sizes(void)
{
    printf("%zu %zu %zu %zu %zu\n", net_weights_bytes(), net_constant_bytes(), net_mutable_bytes(), net_scratch_bytes(),
        net_arena_train_step_bytes());
    printf("%zu %zu %zu %zu %zu\n", (size_t)NET_WEIGHTS_BYTES, (size_t)NET_CONSTANT_BYTES, (size_t)NET_MUTABLE_BYTES,
        (size_t)NET_SCRATCH_BYTES, (size_t)NET_ARENA_TRAIN_STEP_BYTES);
}

int main(int count, char **arguments)
{
    const char *const command = count > 1 ? arguments[1] : "";
    read_file("net.weights", weights, sizeof weights);
    read_file("check/train_step.in.x.bin", images, sizeof images);
    read_file("check/train_step.in.y.bin", labels, sizeof labels);
    if (strcmp(command, "steps") == 0 && count > 2) write_steps(atoi(arguments[2]), count > 3 ? arguments[3] : NULL);
    else if (strcmp(command, "contexts") == 0) compare_contexts();
    else if (strcmp(command, "arena") == 0) try_arenas();
    else if (strcmp(command, "overrun") == 0) ((volatile char *)exactly(NET_ARENA_BYTES))[NET_ARENA_BYTES] = 1;
    else if (strcmp(command, "flips") == 0) damage();
    else if (strcmp(command, "sizes") == 0) print_sizes();
    else return 3;
    return 0;
}
