/*
 * A vault for tests that behaves as its configuration text says: honestly, or not. Keeps everything in memory.
 * Faults of the table itself are chosen when it is compiled (-DFAULT_...).
 */
#define _GNU_SOURCE
#include "mayfly_plugin.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char mode[64];
static uint64_t current, staged;
static unsigned calls;

static int is(const char *wanted) { return strcmp(mode, wanted) == 0; }

static int32_t refuse(mayfly_message *message, int32_t status, const char *text) {
    message->length = strlen(text);
    memcpy(message->text, text, message->length);
    return status;
}

static void hang(void) {
    for (;;) pause();
}

/* a real one: signals are masked on the thread that calls plugins, so a raised SIGSEGV would only wait */
static void fault(void) {
    volatile char *closed = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *closed = 1;
}

/* to the host's socket, whichever number it has */
static void to_socket(const char *bytes, size_t length) {
    for (int fd = 3; fd < 64; fd++) send(fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void *scribble(void *unused) {
    (void)unused;
    /* after the call has returned: write to whatever looks like the host's socket, and burn */
    for (;;) {
        to_socket("\xff\xff\xff\x7fgarbage", 11);
        usleep(100);
    }
    return NULL;
}

/* an answer that never ends, a byte at a time */
static void drip(void) {
    to_socket("\xff\xff\0\0", 4);
    for (;;) {
        to_socket("x", 1);
        usleep(1000);
    }
}

/* the page that is shared with the agent, by a door that only root finds open; never anything else */
static int shrink_page(void) {
    char path[300], name[300];
    int shrunk = 0;
    DIR *maps = opendir("/proc/self/map_files");
    for (struct dirent *entry; maps && (entry = readdir(maps));) {
        snprintf(path, sizeof path, "/proc/self/map_files/%s", entry->d_name);
        ssize_t length = readlink(path, name, sizeof name - 1);
        if (length < 0) continue;
        name[length] = 0;
        if (!strstr(name, "secret")) continue;
        int fd = open(path, O_RDWR);
        if (fd >= 0 && ftruncate(fd, 0) == 0) shrunk = 1;
    }
    return shrunk;
}

static int32_t vault_open(const uint8_t *config, size_t config_len, const uint8_t *dir, size_t dir_len, void **handle,
                          mayfly_message *message) {
    (void)dir;
    (void)dir_len;
    if (config_len >= sizeof mode) return refuse(message, MAYFLY_CONFIG, "mode too long");
    memcpy(mode, config, config_len);
    if (is("refuses to open")) return refuse(message, MAYFLY_AUTH, "wrong pass\nphrase \x1b[31m\xff");
    if (is("hangs in open")) hang();
    if (is("crashes in open")) fault();
    if (is("opens without a handle")) return MAYFLY_OK;
    *handle = mode;
    return MAYFLY_OK;
}

static void vault_close(void *handle) {
    (void)handle;
    if (is("hangs in close")) hang();
}

static int32_t vault_describe(void *handle, mayfly_vault_description *out, mayfly_message *message) {
    (void)handle;
    (void)message;
    out->software_only = is("is half software") ? 2 : 1;
    out->identity_algs = is("offers nothing") ? 0 : 1u << MAYFLY_ALG_ED25519;
    out->tiers = 7;
    memset(out->hardware, 'x', sizeof out->hardware); /* no terminator: allowed */
    memset(out->security_note, is("has odd texts") ? 0xff : '\n', sizeof out->security_note);
    return MAYFLY_OK;
}

static int32_t vault_identity_public(void *handle, uint32_t alg, uint32_t create, uint32_t *alg_out, uint8_t *key,
                                     size_t capacity, size_t *key_len, mayfly_message *message) {
    (void)handle;
    (void)alg;
    (void)create;
    (void)message;
    *alg_out = is("names an unknown algorithm") ? 77 : is("names the other algorithm") ? 2 : 1;
    memset(key, is("changes its identity") ? (int)++calls : 9, 32);
    if (is("commits, answers once and is silent once")) {
        memset(key, 0x66, 32); /* a sound one: the base point (RFC 8032, section 5.1) */
        key[0] = 0x58;
    }
    *key_len = is("claims a long key") ? (size_t)1 << 40 : is("claims one byte too many") ? capacity + 1 : 32;
    if (is("gives a short key")) *key_len = 31;
    return MAYFLY_OK;
}

static int32_t vault_identity_sign(void *handle, const uint8_t *data, size_t data_len, uint8_t *signature,
                                   size_t signature_len, mayfly_message *message) {
    (void)handle;
    (void)data;
    (void)data_len;
    (void)message;
    memset(signature, 0x77, signature_len);
    return MAYFLY_OK;
}

static int32_t vault_generation(void *handle, mayfly_generation *out, mayfly_message *message) {
    (void)handle;
    if (is("commits, answers once and is silent once") && current > 1 && ++calls == 2)
        return refuse(message, MAYFLY_IO, "silent");
    out->current = is("goes back a generation") ? 10 - calls++ : current;
    out->staged = is("stages far ahead") ? 5 : staged;
    return MAYFLY_OK;
}

static int32_t vault_stage(void *handle, uint64_t next, uint32_t tier, uint8_t *key, size_t key_len,
                           mayfly_message *message) {
    (void)handle;
    if (next != current + 1) return refuse(message, MAYFLY_INVALID, "not the next generation");
    staged = next;
    memset(key, (int)(1 + next * 4 + tier), key_len);
    return MAYFLY_OK;
}

static int32_t vault_open_key(void *handle, uint64_t generation, uint32_t tier, uint8_t *key, size_t key_len,
                              mayfly_message *message) {
    (void)handle;
    if (is("commits, answers once and is silent once")) {
        memset(key, (int)(1 + generation * 4 + tier), key_len); /* the key that was staged */
        return MAYFLY_OK;
    }
    if (is("hangs")) hang();
    if (is("hangs once")) {
        /* the folder is the working folder: a new process finds the mark */
        FILE *mark = fopen("mark", "r");
        if (!mark) {
            mark = fopen("mark", "w");
            fclose(mark);
            hang();
        }
        fclose(mark);
    }
    if (is("crashes")) fault();
    if (is("aborts")) abort();
    if (is("exits")) exit(0);
    if (is("writes nothing")) return MAYFLY_OK;
    if (is("gives an unknown status")) return 4711;
    if (is("gives a negative status")) return -2;
    if (is("claims a long message")) {
        message->length = message->capacity + 1;
        return MAYFLY_IO;
    }
    if (is("claims a message without end")) {
        message->length = SIZE_MAX;
        return MAYFLY_IO;
    }
    if (is("gives no reason")) return MAYFLY_IO;
    if (is("writes far beyond the key")) memset(key, 0x41, 1 << 20);
    if (is("smashes the stack")) memset(__builtin_frame_address(0), 0x41, 4096);
    if (is("eats the stack")) {
        volatile char *big = __builtin_alloca(64 << 20);
        big[0] = 1;
    }
    if (is("closes all descriptors"))
        for (int fd = 0; fd < 1024; fd++) close(fd);
    if (is("writes garbage to the socket") || is("writes a giant frame")) {
        if (is("writes a giant frame")) to_socket("\x00\x00\x00\x40", 4);
        else to_socket("\x04\x00\x00\x00zzzzzzzz", 12);
    }
    if (is("forges an answer")) {
        /* well-formed and good, but to call 9999 */
        static const char frame[] = "\x10\0\0\0\x0f\x27\0\0\0\0\0\0\0\0\0\0\0\0\0";
        memset(key, 0x43, key_len);
        to_socket(frame, 20);
        usleep(200000);
    }
    if (is("drips and hangs")) drip();
    if (is("shrinks the page") && shrink_page()) return refuse(message, MAYFLY_INTERNAL, "it was shrunk");
    if (is("leaves a thread behind")) {
        pthread_t thread;
        pthread_create(&thread, NULL, scribble, NULL);
    }
    if (is("makes a process")) {
        pid_t child = fork();
        if (child < 0) return refuse(message, MAYFLY_IO, "fork refused");
        if (child == 0) _exit(0);
        waitpid(child, NULL, 0);
    }
    if (is("runs a program")) {
        execl("/bin/true", "true", (char *)0);
        return refuse(message, MAYFLY_IO, "exec refused");
    }
    if (is("opens a network socket")) {
        if (socket(AF_INET, SOCK_STREAM, 0) < 0) return refuse(message, MAYFLY_IO, "socket refused");
    }
    if (is("opens a unix socket")) {
        if (socket(AF_UNIX, SOCK_STREAM, 0) < 0) return refuse(message, MAYFLY_IO, "socket refused");
    }
    if (is("kills the agent") && (kill(getppid(), SIGKILL) < 0 || syscall(SYS_tgkill, getppid(), getppid(), SIGKILL) < 0))
        return refuse(message, MAYFLY_IO, "kill refused");
    if (is("limits the agent")) {
        struct rlimit none = {0, 0};
        if (prlimit(0, RLIMIT_CORE, NULL, &none) < 0) return refuse(message, MAYFLY_IO, "own limits refused");
        if (prlimit(getppid(), RLIMIT_CORE, NULL, &none) < 0) return refuse(message, MAYFLY_IO, "prlimit refused");
    }
    if (is("has the agent signalled")) {
        struct f_owner_ex owner = {F_OWNER_PID, getppid()};
        int fd = socket(AF_UNIX, SOCK_STREAM, 0), agent = getppid();
        if (fcntl(fd, F_SETOWN, agent) < 0 && fcntl(fd, F_SETOWN_EX, &owner) < 0 && ioctl(fd, FIOSETOWN, &agent) < 0)
            return refuse(message, MAYFLY_IO, "ownership refused");
    }
    if (is("types at the terminal") && ioctl(2, TIOCSTI, "x") < 0 && errno == EPERM)
        return refuse(message, MAYFLY_IO, "typing refused");
    if (is("stops itself")) raise(SIGSTOP);
    memset(key, 0x42, key_len);
    return MAYFLY_OK;
}

static int32_t vault_commit(void *handle, uint64_t next, mayfly_message *message) {
    (void)handle;
    if (next != staged) return refuse(message, MAYFLY_NO_GENERATION, "nothing staged");
    current = staged;
    staged = 0;
    if (is("commits, answers once and is silent once") && current > 1) return refuse(message, MAYFLY_IO, "no answer");
    return MAYFLY_OK;
}

static int32_t vault_discard(void *handle, mayfly_message *message) {
    (void)handle;
    (void)message;
    staged = 0;
    return MAYFLY_OK;
}

static int32_t vault_random(void *handle, uint8_t *out, size_t out_len, mayfly_message *message) {
    (void)handle;
    (void)message;
    if (!is("has no random bytes")) memset(out, 0x51, out_len);
    return MAYFLY_OK;
}

static int32_t vault_health(void *handle, mayfly_health *out, mayfly_message *message) {
    (void)handle;
    (void)message;
    out->state = is("has an odd health") ? 99 : MAYFLY_HEALTH_OK;
    return MAYFLY_OK;
}

#ifdef FAULT_CONSTRUCTOR
__attribute__((constructor)) static void crash(void) { fault(); }
#endif

#ifndef TABLE_SIZE
#define TABLE_SIZE sizeof(mayfly_vault_table)
#endif
#ifndef TABLE_VERSION
#define TABLE_VERSION MAYFLY_ABI_VERSION
#endif
#ifndef TABLE_KIND
#define TABLE_KIND MAYFLY_KIND_VAULT
#endif
#ifndef TABLE_FLAGS
#define TABLE_FLAGS 0
#endif
#ifndef TABLE_NAME
#define TABLE_NAME "hostile"
#endif
#ifndef TABLE_NAME_LEN
#define TABLE_NAME_LEN (sizeof TABLE_NAME - 1)
#endif

static const mayfly_vault_table table = {
    .header = {.size = TABLE_SIZE,
               .abi_version = TABLE_VERSION,
               .kind = TABLE_KIND,
               .flags = TABLE_FLAGS,
               .name = (const uint8_t *)TABLE_NAME,
               .name_len = TABLE_NAME_LEN,
               .version = (const uint8_t *)"1",
               .version_len = 1},
    .open = vault_open,
    .close = vault_close,
    .describe = vault_describe,
    .identity_public = vault_identity_public,
    .identity_sign = vault_identity_sign,
    .generation = vault_generation,
    .stage = vault_stage,
    .open_key = vault_open_key,
#ifndef FAULT_NO_COMMIT
    .commit = vault_commit,
#endif
    .discard_staged = vault_discard,
    .random = vault_random,
    .health = vault_health,
};

#ifdef FAULT_NO_SYMBOL
const mayfly_header *mayfly_plugin_v0(void);
const mayfly_header *mayfly_plugin_v0(void) { return &table.header; }
#else
const mayfly_header *mayfly_plugin_v1(void) {
#if defined FAULT_NULL_TABLE
    return NULL;
#elif defined FAULT_ODD_TABLE
    return (const mayfly_header *)((const char *)&table + 1);
#elif defined FAULT_HANG
    hang();
#endif
    return &table.header;
}
#endif
