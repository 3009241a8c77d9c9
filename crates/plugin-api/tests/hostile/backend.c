/*
 * A ledger backend for tests that lies as its configuration text says. Holds two entries, 0..2, in one bundle.
 */
#include "mayfly_plugin.h"

#include <string.h>
#include <unistd.h>

static char mode[64];
static unsigned calls;
static mayfly_head head_now = {.size = 2, .epoch = 1, .bundle_hash = {1}};

static int is(const char *wanted) { return strcmp(mode, wanted) == 0; }

static int32_t b_open(const uint8_t *config, size_t config_len, const uint8_t *dir, size_t dir_len, void **handle,
                      mayfly_message *message) {
    (void)dir;
    (void)dir_len;
    (void)message;
    memcpy(mode, config, config_len < sizeof mode ? config_len : 0);
    *handle = mode;
    return MAYFLY_OK;
}

static void b_close(void *handle) { (void)handle; }

static int32_t b_caps(void *handle, mayfly_caps *out, mayfly_message *message) {
    (void)handle;
    (void)message;
    out->flags = MAYFLY_CAP_LINEARIZABLE | (is("waits") || is("hangs in wait") ? MAYFLY_CAP_WAIT : 0);
    out->bundle_bytes_max = is("takes huge bundles") ? 1ull << 40 : is("takes no bundles") ? 1 : 1 << 20;
    out->capacity_bytes = UINT64_MAX;
    return MAYFLY_OK;
}

static int32_t b_head(void *handle, mayfly_head *out, mayfly_message *message) {
    (void)handle;
    (void)message;
    *out = head_now;
    if (calls++ == 0) return MAYFLY_OK;
    if (is("loses an entry")) out->size--;
    if (is("goes back an epoch")) out->epoch--;
    if (is("changes its hash")) out->bundle_hash[0]++;
    return MAYFLY_OK;
}

static int32_t b_append(void *handle, const mayfly_head *expected, const mayfly_head *new_head, const uint8_t *bundle,
                        size_t bundle_len, mayfly_head *actual, mayfly_message *message) {
    (void)handle;
    (void)bundle;
    (void)bundle_len;
    (void)message;
    if (is("conflicts with what was expected")) {
        *actual = *expected;
        return MAYFLY_CONFLICT;
    }
    if (is("does not know")) return MAYFLY_UNKNOWN;
    if (is("is full")) return MAYFLY_READ_ONLY;
    if (is("ends in append")) _exit(3);
    if (is("hangs in append"))
        for (;;) pause();
    head_now = *actual = *new_head;
    return MAYFLY_OK;
}

static uint8_t *put_u64(uint8_t *out, uint64_t value) {
    for (int i = 0; i < 8; i++) *out++ = (uint8_t)(value >> (8 * i));
    return out;
}

static int32_t b_read(void *handle, uint64_t from, uint64_t bytes_max, uint8_t *out, size_t out_capacity, size_t *out_len,
                      uint64_t *first, mayfly_message *message) {
    (void)handle;
    (void)bytes_max;
    (void)message;
    if (is("prunes what is there")) {
        *first = from;
        return MAYFLY_PRUNED;
    }
    uint8_t *end = put_u64(out, is("gives a later bundle") ? from + 1 : 0);
    end = put_u64(end, is("gives an empty range") ? 0 : 2);
    memset(end, 1, 32);
    end = put_u64(end + 32, is("claims a long bundle") ? 1ull << 60 : 3);
    memcpy(end, "abc", 3);
    *out_len = is("claims a long answer") ? out_capacity + 1 : (size_t)(end + 3 - out);
    if (is("cuts the bundle")) --*out_len;
    return MAYFLY_OK;
}

static int32_t b_wait(void *handle, uint64_t above, uint64_t timeout_ms, mayfly_head *out, mayfly_message *message) {
    (void)handle;
    (void)above;
    (void)message;
    if (is("hangs in wait"))
        for (;;) pause();
    usleep((useconds_t)timeout_ms * 1000);
    *out = head_now;
    return MAYFLY_OK;
}

static int32_t b_put_checkpoint(void *handle, uint64_t size, const uint8_t *data, size_t data_len, mayfly_message *message) {
    (void)handle;
    (void)size;
    (void)data;
    (void)data_len;
    (void)message;
    return MAYFLY_OK;
}

static int32_t b_latest_checkpoint(void *handle, uint64_t size, uint64_t *size_out, uint8_t *out, size_t out_capacity,
                                   size_t *out_len, mayfly_message *message) {
    (void)handle;
    (void)out;
    (void)out_capacity;
    (void)message;
    *size_out = size + is("gives a later checkpoint");
    *out_len = 1;
    return MAYFLY_OK;
}

static int32_t b_put_snapshot(void *handle, const mayfly_snapshot_info *info, uint64_t offset, const uint8_t *data,
                              size_t data_len, mayfly_message *message) {
    (void)handle;
    (void)info;
    (void)offset;
    (void)data;
    (void)data_len;
    (void)message;
    return MAYFLY_OK;
}

static int32_t b_get_snapshot(void *handle, uint64_t size, uint64_t offset, mayfly_snapshot_info *info, uint8_t *out,
                              size_t out_capacity, size_t *out_len, mayfly_message *message) {
    (void)handle;
    (void)offset;
    (void)out;
    (void)message;
    info->size = size + is("gives a later snapshot");
    info->total_bytes = is("gives a huge snapshot") ? UINT64_MAX : is("gives more than the whole") ? 1 : 100;
    *out_len = is("gives an empty piece") ? 0 : is("gives a long piece") ? out_capacity + 1 : 100;
    return MAYFLY_OK;
}

static int32_t b_prune(void *handle, uint64_t up_to, mayfly_message *message) {
    (void)handle;
    (void)up_to;
    (void)message;
    return MAYFLY_OK;
}

static int32_t b_health(void *handle, mayfly_health *out, mayfly_message *message) {
    (void)handle;
    (void)message;
    out->state = MAYFLY_HEALTH_OK;
    return MAYFLY_OK;
}

static int32_t b_lease(void *handle, const uint8_t *name, size_t name_len, const uint8_t *holder, uint64_t ttl_ms,
                       uint32_t *held, mayfly_message *message) {
    (void)handle;
    (void)name;
    (void)name_len;
    (void)holder;
    (void)ttl_ms;
    (void)message;
    *held = is("half holds a lease") ? 2 : 1;
    return MAYFLY_OK;
}

static const mayfly_backend_table table = {
    .header = {.size = sizeof(mayfly_backend_table),
               .abi_version = MAYFLY_ABI_VERSION,
               .kind = MAYFLY_KIND_BACKEND,
               .name = (const uint8_t *)"liar",
               .name_len = 4,
               .version = (const uint8_t *)"1",
               .version_len = 1},
    .open = b_open,
    .close = b_close,
    .caps = b_caps,
    .head = b_head,
    .append_if_head = b_append,
    .read = b_read,
    .wait = b_wait,
    .put_checkpoint = b_put_checkpoint,
    .latest_checkpoint = b_latest_checkpoint,
    .put_snapshot = b_put_snapshot,
    .get_snapshot = b_get_snapshot,
    .prune = b_prune,
    .health = b_health,
    .lease = b_lease,
};

const mayfly_header *mayfly_plugin_v1(void) { return &table.header; }
