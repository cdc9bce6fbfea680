/* inference.c: uses an exported inference bundle as a program would, and as one should not.
 *
 *   predict    one batch, in memory that is not zero before, without a call that could allocate; writes logits.bin
 *   contexts   eight threads with contexts of their own and one block of weights
 *   arena      refuses an arena that is a byte too small, and works in one of exactly the size that is stated
 *   overrun    writes a byte behind such an arena, which a sanitizer must see
 *   flips      refuses damaged weights
 */
#include "common.h"

static _Alignas(64) unsigned char weights[NET_WEIGHTS_BYTES];
static float images[NET_BATCH * IMAGE];

typedef struct {
    net_memory memory;
    net_context *context;
    int64_t batch;
    float logits[NET_BATCH * CLASSES];
} predictor;

static predictor make_predictor(int64_t batch, size_t arena_bytes)
{
    predictor made = {.context = exactly(net_context_bytes()), .batch = batch};
    made.memory.arena = exactly(arena_bytes);
    made.memory.arena_bytes = arena_bytes;
    return made;
}

static int predict(predictor *p, const unsigned char *file)
{
    const size_t count = (size_t)p->batch;
    int error = net_init(p->context, net_context_bytes(), &p->memory, 0);
    if (!error) error = net_load(p->context, file, NET_WEIGHTS_BYTES);
    return error ? error
                 : net_predict(p->context, p->batch, images, count * IMAGE * sizeof(float), p->logits,
                       count * CLASSES * sizeof(float));
}

/* Everything is on the stack, where memory counts as undefined until it is written. */
static void write_logits(void)
{
    _Alignas(64) unsigned char arena[NET_ARENA_PREDICT_BYTES], context[NET_CONTEXT_BYTES];
    predictor p;
    p.memory = (net_memory){.arena = arena, .arena_bytes = sizeof arena};
    p.context = (net_context *)context;
    p.batch = NET_BATCH;
    require(predict(&p, weights) == NET_OK, "predict failed");
    const int file = open("logits.bin", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    require(write(file, p.logits, sizeof p.logits) == sizeof p.logits, "logits.bin cannot be written");
    close(file);
}

static void *predict_often(void *argument)
{
    for (int turn = 0; turn < 3; turn++) require(predict(argument, weights) == NET_OK, "predict failed");
    return NULL;
}

static void compare_contexts(void)
{
    predictor alone[NET_BATCH], together[CONTEXTS];
    for (int k = 0; k < NET_BATCH; k++) {
        alone[k] = make_predictor(k + 1, NET_ARENA_PREDICT_BYTES);
        predict_often(&alone[k]);
    }
    for (int k = 0; k < CONTEXTS; k++) together[k] = make_predictor(k % NET_BATCH + 1, NET_ARENA_PREDICT_BYTES);
    in_threads(predict_often, together, sizeof *together);
    for (int k = 0; k < CONTEXTS; k++) {
        const predictor *const want = &alone[k % NET_BATCH];
        require(memcmp(together[k].logits, want->logits, sizeof want->logits) == 0, "a thread has other bits");
    }
}

static void try_arenas(void)
{
    predictor small = make_predictor(NET_BATCH, NET_ARENA_PREDICT_BYTES - 1);
    require(predict(&small, weights) == NET_BAD_MEMORY, "a small arena was taken");
    const char *const message = net_message(small.context);
    require(write(STDOUT_FILENO, message, strlen(message)) > 0, "the message cannot be written");
    predictor exact = make_predictor(NET_BATCH, NET_ARENA_PREDICT_BYTES);
    require(predict(&exact, memcpy(exactly(sizeof weights), weights, sizeof weights)) == NET_OK, "an arena was refused");
}

static void damage(void)
{
    predictor p = make_predictor(NET_BATCH, NET_ARENA_PREDICT_BYTES);
    require(predict(&p, weights) == NET_OK, "predict failed");
    float before[NET_BATCH * CLASSES];
    memcpy(before, p.logits, sizeof before);
    unsigned char *const copy = memcpy(exactly(sizeof weights), weights, sizeof weights);
    refuse_flips(p.context, copy);
    require(net_predict(p.context, NET_BATCH, images, sizeof images, p.logits, sizeof p.logits) == NET_OK, "no logits");
    require(memcmp(before, p.logits, sizeof before) == 0, "a refused file changed the logits");
    require(net_load(p.context, copy, sizeof weights) == NET_OK, "the file was refused once it was whole again");
}

int main(int count, char **arguments)
{
    const char *const command = count > 1 ? arguments[1] : "";
    read_file("net.weights", weights, sizeof weights);
    read_file("check/predict.in.x.bin", images, sizeof images);
    if (strcmp(command, "predict") == 0) write_logits();
    else if (strcmp(command, "contexts") == 0) compare_contexts();
    else if (strcmp(command, "arena") == 0) try_arenas();
    else if (strcmp(command, "overrun") == 0) ((volatile char *)exactly(NET_ARENA_PREDICT_BYTES))[NET_ARENA_PREDICT_BYTES] = 1;
    else if (strcmp(command, "flips") == 0) damage();
    else return 3;
    return 0;
}
