/* probe.h: what there is to compute on. */
#ifndef PROBE_H
#define PROBE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Writes what device is used, or why there is none, into a text of `size` bytes; not 0 where there is none. */
int32_t probe_device(char *text, size_t size);

#ifdef __cplusplus
}
#endif

#endif
