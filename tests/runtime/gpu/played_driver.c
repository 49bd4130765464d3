/* A libcuda of host memory, for the real Python bindings to call: what a device needs, and nothing runs later.
 *
 * Kernels are functions of one name that fill an array; graphs count how often they are launched.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_FOUND = 500, CAPTURE_INVALIDATED = 901 };

static int capturing, launches;
static char stream, event, graph, executable, context, module, fill, body;
static void *into = &graph, *bodies[] = {&body};

Result cuInit(unsigned flags) { return (void)flags, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
Result cuDeviceGetName(char *name, int size, int device) { return (void)device, strncpy(name, "Played", size), SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 0;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **made, int device) { return (void)device, *made = &context, SUCCESS; }
Result cuDevicePrimaryCtxRelease(int device) { return (void)device, SUCCESS; }
Result cuCtxSetCurrent(void *made) { return made == &context ? SUCCESS : 201; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }
Result cuStreamCreateWithPriority(void **made, unsigned flags, int priority) {
    *made = &stream;
    return flags == 1 && priority == -5 ? SUCCESS : 1;
}
Result cuStreamDestroy(void *made) { return made == &stream ? SUCCESS : 400; }
Result cuStreamSynchronize(void *made) { return made == &stream ? SUCCESS : 400; }
Result cuStreamWaitEvent(void *made, void *point, unsigned flags) { return (void)flags, made == &stream && point == &event ? SUCCESS : 400; }
Result cuModuleLoadData(void **made, const void *image) { return *made = &module, memcmp(image, "fat", 3) ? NO_BINARY : SUCCESS; }
Result cuModuleUnload(void *made) { return made == &module ? SUCCESS : 400; }
Result cuModuleGetFunction(void **made, void *of, const char *name) {
    *made = &fill;
    return of == &module && !strcmp(name, "fill") ? SUCCESS : NOT_FOUND;
}
Result cuMemGetInfo(size_t *free_bytes, size_t *total) { return *free_bytes = 3000, *total = 10000, SUCCESS; }
Result cuMemAlloc(uint64_t *address, size_t size) {
    if (size > 3000) return OUT_OF_MEMORY;
    *address = (uint64_t)(uintptr_t)malloc(size);
    return SUCCESS;
}
Result cuMemFree(uint64_t address) { return free((void *)(uintptr_t)address), SUCCESS; }
Result cuMemHostAlloc(void **address, size_t size, unsigned flags) { return (void)flags, *address = malloc(size), SUCCESS; }
Result cuMemFreeHost(void *address) { return free(address), SUCCESS; }
static Result move(void *target, const void *source, size_t size, void *made) {
    if (!capturing) memmove(target, source, size);
    return made == &stream ? SUCCESS : 400;
}
Result cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t size, void *made) { return move((void *)to, from, size, made); }
Result cuMemcpyDtoHAsync(void *to, uint64_t from, size_t size, void *made) { return move(to, (void *)from, size, made); }
Result cuMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t size, void *made) { return move((void *)to, (void *)from, size, made); }
Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void *made) {
    if (!capturing) memset((void *)to, value, size);
    return made == &stream ? SUCCESS : 400;
}
/* fill(float *array, int count, float value), by one block of `count` threads. */
Result cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *made, void **arguments, void **extra) {
    float *array = *(float **)arguments[0], value = *(float *)arguments[2];
    int count = *(int *)arguments[1];
    if (function != &fill || made != &stream || extra || shared != 64 || gx * gy * gz != 1) return 1;
    if (bx != (unsigned)count || by != 1 || bz != 1) return 1;
    for (int i = 0; i < count; i++) array[i] = value;
    return SUCCESS;
}
Result cuEventCreate(void **made, unsigned flags) { return (void)flags, *made = &event, SUCCESS; }
Result cuEventDestroy(void *made) { return made == &event ? SUCCESS : 400; }
Result cuEventRecord(void *made, void *on) { return (void)on, made == &event ? SUCCESS : 400; }
Result cuEventSynchronize(void *made) { return made == &event ? SUCCESS : 400; }
Result cuEventElapsedTime(float *ms, void *start, void *end) { return *ms = 1.5f, start == &event && end == &event ? SUCCESS : 400; }
Result cuStreamBeginCapture(void *made, int mode) { return capturing = 1, made == &stream && mode == 1 ? SUCCESS : 400; }
Result cuStreamEndCapture(void *made, void **captured) {
    capturing = 0;
    *captured = into;
    into = &graph;
    return made == &stream ? SUCCESS : CAPTURE_INVALIDATED;
}
Result cuGraphInstantiateWithFlags(void **made, void *of, unsigned long long flags) { return (void)flags, *made = &executable, of == &graph ? SUCCESS : 400; }
Result cuGraphInstantiate(void **made, void *of, unsigned long long flags) { return cuGraphInstantiateWithFlags(made, of, flags); }
Result cuGraphDestroy(void *made) { return made == &graph ? SUCCESS : 400; }
Result cuGraphLaunch(void *made, void *on) { return launches++, made == &executable && on == &stream ? SUCCESS : 400; }
Result cuGraphExecDestroy(void *made) { return made == &executable ? SUCCESS : 400; }
Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
Result cuGraphCreate(void **made, unsigned flags) { return *made = &graph, flags ? 1 : SUCCESS; }
Result cuGraphConditionalHandleCreate(uint64_t *handle, void *of, void *in, unsigned value, unsigned flags) {
    *handle = 4321;
    return of == &graph && in == &context && value == 1 && flags == 1 ? SUCCESS : 1;
}
/* A loop: type 13, whose own type is 1. */
struct Node {
    int type, reserved[3];
    uint64_t handle;
    int kind;
    unsigned size;
    void **graphs, *context;
};
Result cuGraphAddNode_v2(void **made, void *to, void *behind, void *edges, size_t count, struct Node *node) {
    if (to != &graph || behind || edges || count || node->type != 13 || node->handle != 4321) return 1;
    if (node->kind != 1 || node->size != 1 || node->context != &context) return 1;
    node->graphs = bodies;
    return *made = &body, SUCCESS;
}
Result cuGraphAddNode(void **made, void *to, void *behind, void *edges, size_t count, struct Node *node) {
    return cuGraphAddNode_v2(made, to, behind, edges, count, node);
}
Result cuStreamBeginCaptureToGraph(void *made, void *of, void *behind, void *edges, size_t count, int mode) {
    capturing = 1;
    into = of;
    return made == &stream && of == &body && !behind && !edges && !count && mode == 1 ? SUCCESS : 400;
}
int played_launches(void) { return launches; }

Result cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    (void)version, (void)flags;
    *found = dlsym(RTLD_DEFAULT, name);
    if (!*found) *found = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name);
    if (status) *status = *found ? 0 : 1;
    return SUCCESS;
}
Result cuGetProcAddress(const char *name, void **found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
