/* common.h: what the drivers of exported bundles share. The module is called `net`; it maps images x to logits of
 * CLASSES classes, and IMAGE is the number of floats in an image. Everything here ends the program when it fails. */
#include "net.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONTEXTS 8
#define FLIPS 1000
#define HEADER_BYTES 128
#define MESSAGE_BYTES 256 /* of a context; the rest of it is state */
#define FILLED 0xA5       /* what memory holds that nobody has written */

static void require(int holds, const char *what)
{
    if (holds) return;
    if (write(STDERR_FILENO, what, strlen(what)) < 0 || write(STDERR_FILENO, "\n", 1) < 0) _exit(2);
    exit(1);
}

/* Returns memory of exactly that size, so that a byte beyond it belongs to nobody; NULL for no bytes. */
static void *exactly(size_t bytes)
{
    void *memory = NULL;
    if (bytes == 0) return NULL;
    require(posix_memalign(&memory, 64, bytes) == 0, "no memory");
    return memset(memory, FILLED, bytes);
}

static void read_file(const char *path, void *target, size_t bytes)
{
    const int file = open(path, O_RDONLY);
    require(file >= 0, path);
    size_t got = 0;
    for (ssize_t more = 1; more > 0 && got < bytes; got += (size_t)more) {
        more = read(file, (char *)target + got, bytes - got);
        require(more >= 0, path);
    }
    require(got == bytes, path);
    close(file);
}

/* Whether two images of a context agree in all but the message. */
static int same_context(const net_context *one, const void *other)
{
    const size_t message = (size_t)(net_message(one) - (const char *)one), behind = message + MESSAGE_BYTES;
    return memcmp(one, other, message) == 0 &&
           memcmp((const char *)one + behind, (const char *)other + behind, net_context_bytes() - behind) == 0;
}

/* Loads the file with one byte changed at a time: those of the header, then others at random. Every one must be
 * refused with a message, and leave the context as it was. */
static void refuse_flips(net_context *context, unsigned char *file)
{
    unsigned char before[NET_CONTEXT_BYTES];
    memcpy(before, context, net_context_bytes());
    uint64_t random = 88172645463325252u; /* xorshift64 of Marsaglia 2003 */
    for (int k = 0; k < FLIPS; k++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        const size_t place = k < HEADER_BYTES ? (size_t)k : random % NET_WEIGHTS_BYTES;
        const unsigned char change = (unsigned char)(1 + random / NET_WEIGHTS_BYTES % 255);
        file[place] ^= change;
        require(net_load(context, file, NET_WEIGHTS_BYTES) == NET_BAD_WEIGHTS, "a damaged file was taken");
        require(strncmp(net_message(context), "weights file: ", 14) == 0, "no message");
        require(same_context(context, before), "a refused file changed the context");
        file[place] ^= change;
    }
}

/* Runs `work` for every element of an array in a thread of its own. */
static void in_threads(void *(*work)(void *), void *array, size_t size)
{
    pthread_t threads[CONTEXTS];
    for (size_t k = 0; k < CONTEXTS; k++)
        require(pthread_create(&threads[k], NULL, work, (char *)array + k * size) == 0, "no thread");
    for (size_t k = 0; k < CONTEXTS; k++) pthread_join(threads[k], NULL);
}
