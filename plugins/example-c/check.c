/*
 * Breaks the vault at every step. The linker (--wrap) puts the functions below between vault.c and the calls that change
 * files: each call in turn is where the process dies, or what fails, before it was done and after it. Then the vault is
 * opened again, and one generation must open, the old one or the new one.
 *
 * Losing power is more than dying: what was not synced may be gone. So the order of syncs is checked as well.
 */
#define _DEFAULT_SOURCE
#include "mayfly_plugin.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEED(holds)                                                                            \
    do {                                                                                       \
        if (!(holds)) {                                                                        \
            fprintf(stderr, "check.c:%d: %s: step %d, how %d: %s\n", __LINE__, what, target, (int)how, #holds); \
            _exit(BAD);                                                                        \
        }                                                                                      \
    } while (0)

/* How a process ends, beside 0: the step was not reached. REPORTED: it was, and yet the change was made. */
enum { BAD = 1, REPORTED = 2, CRASHED = 77, SHORT_WRITE = 100, STEPS_MAX = 100 };
enum how { CRASH_BEFORE, CRASH_AFTER, FAIL_BEFORE, FAIL_AFTER, HOWS };

static const char *what = "";
static const mayfly_vault_table *table;

/* --- Between vault.c and the kernel --------------------------------------------------------------------------------- */

static int steps, target, broken = -1; /* `target` becomes `broken` in the process that is to break */
static enum how how;

/* What has not reached the disk; shared, for it outlives a process. */
static struct unsynced {
    int file, link, rename, unlink;
} * unsynced;

ssize_t __real_write(int fd, const void *bytes, size_t length);
int __real_linkat(int from_dir, const char *from, int to_dir, const char *to, int flags);
int __real_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __real_unlinkat(int dir, const char *name, int flags);
ssize_t __wrap_write(int fd, const void *bytes, size_t length);
int __wrap_fsync(int fd);
int __wrap_linkat(int from_dir, const char *from, int to_dir, const char *to, int flags);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __wrap_unlinkat(int dir, const char *name, int flags);

/* 1 when the call that follows is to fail without being made. */
static int is_left_out(void) {
    if (steps != broken) return 0;
    if (how == CRASH_BEFORE) _exit(CRASHED);
    if (how != FAIL_BEFORE) return 0;
    steps++;
    errno = EIO;
    return 1;
}

/* What the caller is told of a call that was made. */
static int told(int result) {
    if (steps++ != broken) return result;
    if (how == CRASH_AFTER) _exit(CRASHED);
    if (how != FAIL_AFTER) return result;
    errno = EIO;
    return -1;
}

ssize_t __wrap_write(int fd, const void *bytes, size_t length) {
    if (is_left_out()) return -1;
    NEED(!unsynced->rename); /* else losing power brings the name back to what is overwritten here */
    unsynced->file = 1;
    return told((int)__real_write(fd, bytes, length < SHORT_WRITE ? length : SHORT_WRITE));
}

int __wrap_fsync(int fd) {
    struct stat st;
    if (is_left_out()) return -1;
    NEED(fstat(fd, &st) == 0);
    *unsynced = S_ISDIR(st.st_mode) ? (struct unsynced){.file = unsynced->file}
                                    : (struct unsynced){0, unsynced->link, unsynced->rename, unsynced->unlink};
    return told(0);
}

int __wrap_linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    if (is_left_out()) return -1;
    int result = __real_linkat(from_dir, from, to_dir, to, flags);
    if (result != 0) return result; /* there is nothing to link: no change */
    unsynced->link = 1;
    return told(result);
}

int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to) {
    if (is_left_out()) return -1;
    NEED(!unsynced->file && !unsynced->link);
    unsynced->rename = 1;
    return told(__real_renameat(from_dir, from, to_dir, to));
}

int __wrap_unlinkat(int dir, const char *name, int flags) {
    if (is_left_out()) return -1;
    NEED(!unsynced->rename && !unsynced->file);
    unsynced->unlink = 1;
    return told(__real_unlinkat(dir, name, flags));
}

/* --- A vault in a folder of its own --------------------------------------------------------------------------------- */

static char base[256], folder[288], key_file[288], config[320];
static uint8_t text[MAYFLY_MESSAGE_BYTES_MAX];
static mayfly_message message = {text, sizeof text, 0};

static void make_key(const char *path) {
    FILE *random = fopen("/dev/urandom", "rb"), *file = fopen(path, "wb");
    uint8_t key[32];
    NEED(random && file && fread(key, sizeof key, 1, random) == 1 && fwrite(key, sizeof key, 1, file) == 1);
    NEED(fclose(file) == 0 && fclose(random) == 0 && chmod(path, 0600) == 0);
}

static void remove_all(const char *path) {
    DIR *dir = opendir(path);
    NEED(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        NEED(__real_unlinkat(dirfd(dir), entry->d_name, 0) == 0);
    }
    NEED(closedir(dir) == 0);
}

/* 1 when nothing but `vault` is in the folder. */
static int is_at_rest(void) {
    int good = 1;
    DIR *dir = opendir(folder);
    NEED(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        good = good && (entry->d_name[0] == '.' || strcmp(entry->d_name, "vault") == 0);
    NEED(closedir(dir) == 0);
    return good;
}

static int32_t open_with(const char *configuration, void **vault) {
    return table->open((const uint8_t *)configuration, strlen(configuration), (const uint8_t *)folder, strlen(folder), vault,
                       &message);
}

static void *opened(void) {
    void *vault = NULL;
    NEED(open_with(config, &vault) == MAYFLY_OK && vault);
    return vault;
}

static int32_t identity(void *vault, uint32_t create, uint8_t key[33]) {
    uint32_t alg;
    size_t length;
    return table->identity_public(vault, 0, create, &alg, key, 33, &length, &message);
}

static mayfly_generation generation(void *vault) {
    mayfly_generation found;
    NEED(table->generation(vault, &found, &message) == MAYFLY_OK);
    return found;
}

static int32_t stage(void *vault, uint64_t next, uint8_t key[32]) {
    return table->stage(vault, next, MAYFLY_TIER_BOOT, key, 32, &message);
}

/* Exactly this generation opens, with this key. */
static void only_opens(void *vault, uint64_t wanted, const uint8_t key[32]) {
    uint8_t found[32];
    NEED(generation(vault).current == wanted);
    for (uint64_t number = 0; number < 5; number++) {
        int32_t status = table->open_key(vault, number, MAYFLY_TIER_BOOT, found, 32, &message);
        NEED(status == (number == wanted && wanted > 0 ? MAYFLY_OK : MAYFLY_NO_GENERATION));
        NEED(status != MAYFLY_OK || memcmp(found, key, 32) == 0);
    }
}

/* --- Every step of every change ------------------------------------------------------------------------------------- */

enum change { IDENTITY, STAGE, COMMIT, DISCARD };

static int32_t change_vault(void *vault, enum change change, uint64_t next) {
    uint8_t key[33];
    switch (change) {
    case IDENTITY: return identity(vault, 1, key);
    case STAGE: return stage(vault, next, key);
    case COMMIT: return table->commit(vault, next, &message);
    default: return table->discard_staged(vault, &message);
    }
}

/* Makes the change in a folder at `start`, broken at one step; 1 when that was beyond the last. */
static int break_once(enum change change, uint64_t start, int *is_new) {
    uint8_t old_key[32] = {0}, new_key[32] = {0}, first[33], again[33];
    remove_all(folder);
    void *vault = opened();
    for (uint64_t next = 1; next <= start; next++)
        NEED(stage(vault, next, old_key) == MAYFLY_OK && table->commit(vault, next, &message) == MAYFLY_OK);
    if (change != STAGE && change != IDENTITY) NEED(stage(vault, start + 1, new_key) == MAYFLY_OK);
    table->close(vault);
    memset(unsynced, 0, sizeof *unsynced);

    /* a process of its own, for it may end in the middle */
    fflush(stderr);
    pid_t child = fork();
    NEED(child >= 0);
    if (child == 0) {
        vault = opened();
        steps = 0;
        broken = target;
        int32_t status = change_vault(vault, change, start + 1);
        int reached = steps > broken;
        NEED(reached || status == MAYFLY_OK);
        NEED(status != MAYFLY_OK || (!unsynced->file && !unsynced->rename && !unsynced->unlink));
        if (status != MAYFLY_OK) {
            /* a failed call: told as such, and the next one makes good */
            NEED(message.length > 0 && status == MAYFLY_IO);
            broken = -1;
            NEED(change_vault(vault, change, start + 1) == MAYFLY_OK && is_at_rest());
        }
        _exit(reached ? REPORTED : 0);
    }
    int status;
    NEED(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) != BAD);
    int whole = WEXITSTATUS(status) == 0, reported_good = WEXITSTATUS(status) != CRASHED;

    vault = opened();
    NEED(is_at_rest());
    mayfly_generation found = generation(vault);
    switch (change) {
    case IDENTITY: *is_new = identity(vault, 0, first) == MAYFLY_OK; break;
    case STAGE: *is_new = found.staged != 0; break;
    case COMMIT: *is_new = found.current == start + 1; break;
    default: *is_new = found.staged == 0; break;
    }
    NEED(*is_new || !reported_good);
    NEED(found.staged == 0 || found.staged == start + 1);
    if (change == COMMIT && *is_new) {
        only_opens(vault, start + 1, new_key);
        NEED(found.staged == 0);
    } else {
        only_opens(vault, start, old_key);
        NEED(change != COMMIT || found.staged == start + 1);
    }
    /* and it can be done again */
    NEED(change_vault(vault, change, start + 1) == MAYFLY_OK && is_at_rest());
    if (change == COMMIT) only_opens(vault, start + 1, new_key);
    if (change == IDENTITY) NEED(identity(vault, 0, again) == MAYFLY_OK && (!*is_new || memcmp(first, again, 33) == 0));
    table->close(vault);
    return whole;
}

static int break_everywhere(enum change change, uint64_t start) {
    int total = 0;
    for (how = 0; how < HOWS; how++) {
        int was_new = 0, step = 0;
        for (int whole = 0; !whole; step++) {
            int is_new;
            NEED(step < STEPS_MAX);
            target = step;
            whole = break_once(change, start, &is_new);
            NEED(step > 0 || !is_new || how != CRASH_BEFORE);
            NEED(is_new || !was_new); /* there is one step that makes the change */
            was_new = is_new;
        }
        NEED(was_new && step > 8);
        total += step - 1;
    }
    return total;
}

/* --- The rest ------------------------------------------------------------------------------------------------------- */

static size_t read_vault(uint8_t *bytes, size_t capacity) {
    char path[320];
    snprintf(path, sizeof path, "%s/vault", folder);
    FILE *file = fopen(path, "rb");
    NEED(file);
    size_t length = fread(bytes, 1, capacity, file);
    NEED(fclose(file) == 0);
    return length;
}

static void write_vault(const uint8_t *bytes, size_t length) {
    char path[320];
    snprintf(path, sizeof path, "%s/vault", folder);
    FILE *file = fopen(path, "wb");
    NEED(file && fwrite(bytes, 1, length, file) == length && fclose(file) == 0);
}

static void damage_is_seen(void) {
    uint8_t key[32], good[1024], bad[1024];
    void *vault = opened();
    NEED(stage(vault, 1, key) == MAYFLY_OK && table->commit(vault, 1, &message) == MAYFLY_OK);
    size_t length = read_vault(good, sizeof good);
    NEED(length > 100 && length < sizeof good);
    for (size_t start = 0; start + 8 <= length; start++) NEED(memcmp(good + start, key, 8) != 0);
    for (size_t place = 0; place < length; place++) {
        memcpy(bad, good, length);
        bad[place] ^= 4;
        write_vault(bad, length);
        int32_t wanted = place >= 8 && place < 24 ? MAYFLY_AUTH : MAYFLY_CORRUPT;
        NEED(table->open_key(vault, 1, MAYFLY_TIER_BOOT, key, 32, &message) == wanted);
    }
    for (size_t cut = 0; cut < length; cut += 50) {
        write_vault(good, cut);
        NEED(table->open_key(vault, 1, MAYFLY_TIER_BOOT, key, 32, &message) == MAYFLY_CORRUPT);
    }
    write_vault(bad, length + 1);
    NEED(table->open_key(vault, 1, MAYFLY_TIER_BOOT, key, 32, &message) == MAYFLY_CORRUPT);
    write_vault(good, length);
    table->close(vault);
    table->close(opened());
    make_key(key_file);
    NEED(open_with(config, &vault) == MAYFLY_AUTH);
}

static void old_bytes_are_overwritten(void) {
    char path[320], witness[320];
    uint8_t bytes[1024], key[32];
    void *vault = opened();
    NEED(stage(vault, 1, key) == MAYFLY_OK && table->commit(vault, 1, &message) == MAYFLY_OK);
    NEED(stage(vault, 2, key) == MAYFLY_OK);
    snprintf(path, sizeof path, "%s/vault", folder);
    snprintf(witness, sizeof witness, "%s/witness", base);
    NEED(__real_linkat(AT_FDCWD, path, AT_FDCWD, witness, 0) == 0);
    NEED(table->commit(vault, 2, &message) == MAYFLY_OK);
    FILE *file = fopen(witness, "rb");
    NEED(file);
    size_t length = fread(bytes, 1, sizeof bytes, file);
    NEED(length > 100 && fclose(file) == 0 && __real_unlinkat(AT_FDCWD, witness, 0) == 0);
    for (size_t place = 0; place < length; place++) NEED(bytes[place] == 0);
    table->close(vault);
}

static void configurations(void) {
    char good[352], text_of[4400];
    void *vault = opened(), *second;
    NEED(open_with(config, &second) == MAYFLY_BUSY);
    table->close(vault);
    NEED(chmod(key_file, 0640) == 0 && open_with(config, &vault) == MAYFLY_CONFIG);
    NEED(chmod(key_file, 0600) == 0);
    snprintf(good, sizeof good, "  key_file = '%s' \n\n", key_file);
    NEED(open_with(good, &vault) == MAYFLY_OK);
    table->close(vault);
    static const char *const bad[] = {
        "", "key_file", "key_file = ''", "key_file = 'key'", "key_file = '/nowhere'", "key_file = '/dev/zero'",
        "key_file = '/etc/passwd'", "key_file = '/x'\nkey_file = '/x'", "key_file = '/x", "key = '/x'", "= '/x'",
        "key_credential = 'x'", "key_credential = '../x'",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        what = bad[i];
        NEED(open_with(bad[i], &vault) == MAYFLY_CONFIG && message.length > 0);
    }
    memset(text_of, 'x', sizeof text_of);
    text_of[sizeof text_of - 1] = 0;
    NEED(open_with(text_of, &vault) == MAYFLY_CONFIG);
    NEED(table->open((const uint8_t *)"a\0b", 3, (const uint8_t *)folder, strlen(folder), &vault, &message) == MAYFLY_CONFIG);
    NEED(table->open(NULL, 0, NULL, 0, &vault, &message) == MAYFLY_CONFIG);

    /* a credential: the same bytes by another way */
    NEED(setenv("CREDENTIALS_DIRECTORY", base, 1) == 0 && open_with("key_credential = 'key'", &vault) == MAYFLY_OK);
    table->close(vault);
    NEED(open_with("key_credential = '../x'", &vault) == MAYFLY_CONFIG && unsetenv("CREDENTIALS_DIRECTORY") == 0);

    /* a message with no room */
    mayfly_message none = {NULL, 0, 0};
    NEED(table->open(NULL, 0, NULL, 0, &vault, &none) == MAYFLY_CONFIG && none.length == 0);
}

static void all_calls(void) {
    uint8_t key[33], signature[64];
    mayfly_vault_description description = {.size = sizeof description};
    mayfly_health health = {.size = sizeof health};
    void *vault = opened();
    uint64_t next = generation(vault).current + 1;
    NEED(identity(vault, 1, key) == MAYFLY_OK);
    NEED(table->identity_sign(vault, key, sizeof key, signature, sizeof signature, &message) == MAYFLY_OK);
    NEED(table->describe(vault, &description, &message) == MAYFLY_OK && table->health(vault, &health, &message) == MAYFLY_OK);
    NEED(stage(vault, next, key) == MAYFLY_OK && table->discard_staged(vault, &message) == MAYFLY_OK);
    NEED(stage(vault, next, key) == MAYFLY_OK && table->commit(vault, next, &message) == MAYFLY_OK);
    NEED(table->open_key(vault, next, MAYFLY_TIER_BOOT, key, 32, &message) == MAYFLY_OK);
    NEED(table->open_key(vault, next, MAYFLY_TIER_WINDOW, key, 32, &message) == MAYFLY_NOT_FOUND);
    table->close(vault);
}

/* The first rounds fill libcrypto's caches. (Under the address sanitizer the numbers are 0, and it looks itself.) */
static void memory_comes_back(void) {
    for (int round = 0; round < 5; round++) all_calls();
    size_t before = mallinfo2().uordblks;
    for (int round = 0; round < 50; round++) all_calls();
    NEED(mallinfo2().uordblks < before + 50 * 16);
}

static int descriptors(void) {
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    NEED(dir);
    while (readdir(dir)) count++;
    NEED(closedir(dir) == 0);
    return count;
}

int main(void) {
    static const char *const names[] = {"identity", "stage", "commit", "discard"};
    const char *parent = getenv("TMPDIR");
    table = (const mayfly_vault_table *)mayfly_plugin_v1();
    unsynced = mmap(NULL, sizeof *unsynced, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(unsynced != MAP_FAILED);
    int length = snprintf(base, sizeof base, "%s/example-c-XXXXXX", parent ? parent : "/tmp");
    NEED(length > 0 && (size_t)length < sizeof base && mkdtemp(base));
    snprintf(folder, sizeof folder, "%s/data", base);
    snprintf(key_file, sizeof key_file, "%s/key", base);
    snprintf(config, sizeof config, "key_file = '%s'", key_file);
    NEED(mkdir(folder, 0700) == 0);
    make_key(key_file);

    int before = descriptors();
    for (enum change change = IDENTITY; change <= DISCARD; change++)
        for (uint64_t start = 0; start < 2; start++) {
            what = names[change];
            printf("%s over generation %d: %d steps broken\n", what, (int)start, break_everywhere(change, start));
        }
    static void (*const others[])(void) = {old_bytes_are_overwritten, configurations, memory_comes_back, damage_is_seen};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        what = "others";
        remove_all(folder);
        memset(unsynced, 0, sizeof *unsynced);
        others[i]();
    }
    NEED(descriptors() == before);
    remove_all(folder);
    NEED(rmdir(folder) == 0 && __real_unlinkat(AT_FDCWD, key_file, 0) == 0 && rmdir(base) == 0);
    NEED(munmap(unsynced, sizeof *unsynced) == 0);
    puts("all good");
    return 0;
}
