/*
 * A complete vault plugin in C: one file, sealed by AES-256-GCM under a key that lies elsewhere. Software only.
 *
 * It is an example to start from: replace seal(), load() and save() by what your chip or token does, keep the rest.
 * docs/write-a-plugin.md leads through it; docs/formats/plugin-abi.md has the rules; `make check` breaks it at every step.
 *
 * The whole state (generations, their keys, the identity) is one sealed message in the file `vault`. Every change writes a
 * new file and renames it over the old one, so the rename is the change, and whatever is killed when, there is one state.
 *
 *   vault   the state
 *   new     the next state, until it is renamed; worthless after a crash
 *   old     second name of the state that is being replaced, so that its bytes can be overwritten after the rename
 *
 * It must never keep a vault key or the identity in memory between calls, nor write one unsealed.
 */
#define _DEFAULT_SOURCE
#include "mayfly_plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/params.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { KEY_BYTES = MAYFLY_VAULT_KEY_BYTES, POINT_BYTES = 33, NONCE_BYTES = 12, TAG_BYTES = 16, ID_BYTES = 16 };
enum { CURRENT, STAGED, TIERS = 3 };
/* Longest configuration: one option with a path. */
enum { CONFIG_BYTES = MAYFLY_PATH_BYTES_MAX + 128 };

static const char VAULT[] = "vault", NEW[] = "new", OLD[] = "old";

/* An open vault; in memory that is never swapped. */
typedef struct {
    int dir;          /* the data folder; holds the lock */
    int is_unsettled; /* a change was begun and not brought to its end */
    uint64_t sync_micros;
    uint8_t seal_key[KEY_BYTES];
    uint8_t key_id[ID_BYTES];
} vault;

/* All that is kept, before it is sealed. Bytes only, so there is no padding. */
typedef struct {
    uint8_t generation[8]; /* the committed one, big-endian; staged keys are those of the next */
    uint8_t has_key[2][TIERS];
    uint8_t key[2][TIERS][KEY_BYTES];
    uint8_t has_identity;
    uint8_t identity_public[POINT_BYTES]; /* compressed */
    uint8_t identity_secret[KEY_BYTES];   /* the scalar in the machine's byte order, as libcrypto takes it */
} state;
_Static_assert(sizeof(state) == 8 + 6 + 192 + 1 + 33 + 32, "padding would be sealed along");

/* The file `vault`. What is in front of the nonce is authenticated. */
typedef struct {
    uint8_t magic[8];
    uint8_t key_id[ID_BYTES]; /* tells a wrong key from damage */
    uint8_t nonce[NONCE_BYTES]; /* random; 2^32 changes are far away (SP 800-38D, 8.3) */
    uint8_t sealed[sizeof(state)];
    uint8_t tag[TAG_BYTES];
} sealed_state;
_Static_assert(sizeof(sealed_state) == 8 + 16 + 12 + sizeof(state) + 16, "padding would be written along");

static const uint8_t MAGIC[8] = "MFEXC\0\0\1";

/* --- Refusals ------------------------------------------------------------------------------------------------------- */

/* Gives `status` with a reason; all of ours are ASCII and short. */
__attribute__((format(printf, 3, 4))) static int32_t refuse(mayfly_message *message, int32_t status, const char *format,
                                                            ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    size_t length = written < 0 ? 0 : (size_t)written;
    if (length > sizeof text - 1) length = sizeof text - 1;
    if (length > message->capacity) length = message->capacity;
    if (length > 0) memcpy(message->text, text, length);
    message->length = length;
    return status;
}

/* The same for a system call that has just failed. */
static int32_t refuse_errno(mayfly_message *message, const char *what) {
    int error = errno;
    int full = error == ENOSPC || error == EDQUOT || error == EROFS;
    return refuse(message, full ? MAYFLY_READ_ONLY : MAYFLY_IO, "%s: %s", what, strerror(error));
}

/* --- Bytes, numbers ------------------------------------------------------------------------------------------------- */

static uint64_t generation_of(const state *s) {
    uint64_t number = 0;
    for (int i = 0; i < 8; i++) number = number << 8 | s->generation[i];
    return number;
}

static void set_generation(state *s, uint64_t number) {
    for (int i = 7; i >= 0; i--, number >>= 8) s->generation[i] = (uint8_t)number;
}

static int is_staged(const state *s) { return s->has_key[STAGED][0] || s->has_key[STAGED][1] || s->has_key[STAGED][2]; }

/* Random bytes of the kernel; 0, or -1 with errno. */
static int fill_random(uint8_t *out, size_t length) {
    while (length > 0) {
        ssize_t got = getrandom(out, length, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        out += got;
        length -= (size_t)got;
    }
    return 0;
}

/* Reads or writes all of `length`; 0, or -1 with errno (EIO when the file ends early). */
static int transfer_all(int fd, uint8_t *in, const uint8_t *out, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t some = in ? read(fd, in + done, length - done) : write(fd, out + done, length - done);
        if (some < 0 && errno == EINTR) continue;
        if (some == 0) errno = EIO;
        if (some <= 0) return -1;
        done += (size_t)some;
    }
    return 0;
}

static int32_t out_of_memory(mayfly_message *message) {
    return refuse(message, MAYFLY_INTERNAL, "libcrypto failed, most likely for want of memory");
}

/* --- Sealing: replace this by your hardware ------------------------------------------------------------------------- */

/* Seals `s` into `file`, or opens it (`sealing` 0); 1 when it worked, else nothing of the state is left in `s`. */
static int seal(int sealing, const vault *v, sealed_state *file, state *s) {
    int length, ok = 0;
    uint8_t *from = sealing ? (uint8_t *)s : file->sealed, *to = sealing ? file->sealed : (uint8_t *)s;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (ctx && EVP_CipherInit_ex(ctx, EVP_aes_256_gcm(), NULL, v->seal_key, file->nonce, sealing) == 1 &&
        EVP_CipherUpdate(ctx, NULL, &length, (uint8_t *)file, offsetof(sealed_state, nonce)) == 1 &&
        (sealing || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, file->tag) == 1) &&
        EVP_CipherUpdate(ctx, to, &length, from, sizeof *s) == 1 && EVP_CipherFinal_ex(ctx, to + length, &length) == 1 &&
        (!sealing || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, file->tag) == 1))
        ok = 1;
    EVP_CIPHER_CTX_free(ctx);
    if (!ok) explicit_bzero(s, sizeof *s);
    return ok;
}

/* Reads the state from `name`; a missing file is the state before the first change. The caller wipes it. */
static int32_t load(const vault *v, const char *name, state *s, mayfly_message *message) {
    static const char advice[] = "put the whole folder back from its newest copy, or enrol the device anew";
    sealed_state file;
    struct stat st;
    memset(s, 0, sizeof *s);
    int fd = openat(v->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) return MAYFLY_OK;
    if (fd < 0) return refuse_errno(message, name);
    int failed = fstat(fd, &st);
    int whole = !failed && st.st_size == (off_t)sizeof file;
    if (whole) failed = transfer_all(fd, (uint8_t *)&file, NULL, sizeof file);
    int32_t status = failed ? refuse_errno(message, name) : MAYFLY_OK;
    close(fd);
    if (status != MAYFLY_OK) return status;
    if (!whole || memcmp(file.magic, MAGIC, sizeof MAGIC) != 0)
        return refuse(message, MAYFLY_CORRUPT, "%s: not a vault of this version, or cut off; %s", name, advice);
    if (memcmp(file.key_id, v->key_id, ID_BYTES) != 0)
        return refuse(message, MAYFLY_AUTH, "%s: sealed under another key than the configured one", name);
    if (!seal(0, v, &file, s)) return refuse(message, MAYFLY_CORRUPT, "%s: changed or damaged; %s", name, advice);
    return MAYFLY_OK;
}

/* --- The folder ----------------------------------------------------------------------------------------------------- */

/* Overwrites and removes a file; a missing one is fine. 0, or -1 with errno. */
static int wipe(const vault *v, const char *name) {
    static const uint8_t zeros[sizeof(sealed_state)];
    struct stat st;
    int fd = openat(v->dir, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return errno == ENOENT ? 0 : -1;
    int failed = fstat(fd, &st);
    for (off_t left = failed ? 0 : st.st_size; left > 0 && !failed; left -= (off_t)sizeof zeros)
        failed = transfer_all(fd, NULL, zeros, left < (off_t)sizeof zeros ? (size_t)left : sizeof zeros);
    failed = failed || fsync(fd);
    int error = errno;
    close(fd);
    errno = error;
    return failed ? -1 : unlinkat(v->dir, name, 0);
}

/* 1 when `name` is there, 0 when not, -1 with errno. */
static int find(const vault *v, const char *name, struct stat *st) {
    if (fstatat(v->dir, name, st, AT_SYMLINK_NOFOLLOW) == 0) return 1;
    return errno == ENOENT ? 0 : -1;
}

/*
 * Brings the folder to rest, after a change and after a crash in one: nothing but `vault` is left. `old` is overwritten
 * only when it is surely not the state that counts: the rename must be durable first, or losing power would bring the name
 * `vault` back to the bytes that were overwritten.
 */
static int32_t settle(vault *v, mayfly_message *message) {
    struct stat now, old;
    if (fsync(v->dir) != 0) return refuse_errno(message, "data folder");
    int has_now = find(v, VAULT, &now), has_old = find(v, OLD, &old);
    if (has_now < 0 || has_old < 0) return refuse_errno(message, "data folder");
    if (has_old && !has_now) return refuse(message, MAYFLY_CORRUPT, "the file vault is missing beside the file old");
    int is_undone = has_old && old.st_dev == now.st_dev && old.st_ino == now.st_ino;
    if (wipe(v, NEW) != 0 || (is_undone ? unlinkat(v->dir, OLD, 0) : wipe(v, OLD)) != 0 || fsync(v->dir) != 0)
        return refuse_errno(message, "data folder");
    v->is_unsettled = 0;
    return MAYFLY_OK;
}

/* The state that counts, surely on the disk: also after a call that failed halfway. The caller wipes it. */
static int32_t read_state(vault *v, state *s, mayfly_message *message) {
    memset(s, 0, sizeof *s);
    int32_t status = v->is_unsettled ? settle(v, message) : MAYFLY_OK;
    return status == MAYFLY_OK ? load(v, VAULT, s, message) : status;
}

static uint64_t micros(void) {
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Writes a file whole and durably; 0, or -1 with errno. */
static int write_new(const vault *v, const char *name, const uint8_t *bytes, size_t length) {
    int fd = openat(v->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return -1;
    int failed = transfer_all(fd, NULL, bytes, length) || fsync(fd);
    int error = errno;
    failed = close(fd) || failed;
    errno = error;
    return failed ? -1 : 0;
}

/* Makes `s`, which read_state gave and the caller has changed, the state: durable, atomic, the one before overwritten. */
static int32_t save(vault *v, state *s, mayfly_message *message) {
    sealed_state file;
    state check;
    uint64_t started = micros();
    memcpy(file.magic, MAGIC, sizeof MAGIC);
    memcpy(file.key_id, v->key_id, ID_BYTES);
    if (fill_random(file.nonce, NONCE_BYTES) != 0) return refuse_errno(message, "random bytes");
    if (!seal(1, v, &file, s)) return out_of_memory(message);
    v->is_unsettled = 1;
    if (write_new(v, NEW, (const uint8_t *)&file, sizeof file) != 0) return refuse_errno(message, NEW);
    /* only what verifiably opens may replace what does */
    int32_t status = load(v, NEW, &check, message);
    if (status == MAYFLY_OK && CRYPTO_memcmp(&check, s, sizeof check) != 0)
        status = refuse(message, MAYFLY_IO, "%s: reads otherwise than it was written", NEW);
    explicit_bzero(&check, sizeof check);
    if (status != MAYFLY_OK) return status;
    if (linkat(v->dir, VAULT, v->dir, OLD, 0) != 0 && errno != ENOENT) return refuse_errno(message, OLD);
    if (fsync(v->dir) != 0 || renameat(v->dir, NEW, v->dir, VAULT) != 0) return refuse_errno(message, VAULT);
    status = settle(v, message);
    v->sync_micros = micros() - started;
    return status;
}

/* --- Identity: ECDSA on P-256 --------------------------------------------------------------------------------------- */

/* libcrypto's key of the state's identity, or NULL. */
static EVP_PKEY *identity_key(state *s) {
    char group[] = "P-256";
    EVP_PKEY *key = NULL;
    OSSL_PARAM parts[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group, 0),
        OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, s->identity_public, POINT_BYTES),
        OSSL_PARAM_construct_BN(OSSL_PKEY_PARAM_PRIV_KEY, s->identity_secret, KEY_BYTES),
        OSSL_PARAM_construct_end(),
    };
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    if (!ctx || EVP_PKEY_fromdata_init(ctx) != 1 || EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_KEYPAIR, parts) != 1) key = NULL;
    EVP_PKEY_CTX_free(ctx);
    return key;
}

/* Makes an identity in `s`; 1 when it worked. */
static int make_identity(state *s) {
    OSSL_PARAM secret[] = {
        OSSL_PARAM_construct_BN(OSSL_PKEY_PARAM_PRIV_KEY, s->identity_secret, KEY_BYTES),
        OSSL_PARAM_construct_end(),
    };
    size_t length = 0;
    EVP_PKEY *key = EVP_EC_gen("P-256"), *again = NULL;
    if (key && EVP_PKEY_set_utf8_string_param(key, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, "compressed") == 1 &&
        EVP_PKEY_get_octet_string_param(key, OSSL_PKEY_PARAM_PUB_KEY, s->identity_public, POINT_BYTES, &length) == 1 &&
        length == POINT_BYTES && EVP_PKEY_get_params(key, secret) == 1)
        again = identity_key(s);
    s->has_identity = again && EVP_PKEY_eq(key, again) == 1;
    EVP_PKEY_free(again);
    EVP_PKEY_free(key);
    return s->has_identity;
}

/* r || s of a signature in DER, with the lower of the two values that s may have. 1 when it worked. */
static int to_fixed(const uint8_t *der, size_t der_len, uint8_t out[MAYFLY_SIGNATURE_BYTES]) {
    int ok = 0;
    ECDSA_SIG *signature = d2i_ECDSA_SIG(NULL, &der, (long)der_len);
    EC_GROUP *group = EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1);
    BIGNUM *half = BN_new(), *low = BN_new();
    if (signature && group && half && low) {
        const BIGNUM *order = EC_GROUP_get0_order(group), *s = ECDSA_SIG_get0_s(signature);
        ok = BN_rshift1(half, order) == 1 &&
             (BN_cmp(s, half) > 0 ? BN_sub(low, order, s) == 1 : BN_copy(low, s) != NULL) &&
             BN_bn2binpad(ECDSA_SIG_get0_r(signature), out, 32) == 32 && BN_bn2binpad(low, out + 32, 32) == 32;
    }
    BN_free(low);
    BN_free(half);
    EC_GROUP_free(group);
    ECDSA_SIG_free(signature);
    return ok;
}

static int sign(state *s, const uint8_t *data, size_t data_len, uint8_t out[MAYFLY_SIGNATURE_BYTES]) {
    uint8_t der[80]; /* 72 at most */
    size_t der_len = sizeof der;
    EVP_PKEY *key = identity_key(s);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int ok = key && ctx && EVP_DigestSignInit_ex(ctx, NULL, "SHA256", NULL, NULL, key, NULL) == 1 &&
             EVP_DigestSign(ctx, der, &der_len, data_len > 0 ? data : (const uint8_t *)"", data_len) == 1 &&
             to_fixed(der, der_len, out);
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    return ok;
}

/* --- Opening -------------------------------------------------------------------------------------------------------- */

/*
 * The configuration is one option: key_file = '/absolute/path', or key_credential = 'name' for a credential of systemd
 * (LoadCredentialEncrypted=). Its 32 bytes must not lie on the disk of the data folder, or sealing means nothing.
 */
static int32_t read_secret(const uint8_t *config, size_t config_len, uint8_t secret[KEY_BYTES], mayfly_message *message) {
    char text[CONFIG_BYTES + 1], option[32], value[MAYFLY_PATH_BYTES_MAX], path[2 * MAYFLY_PATH_BYTES_MAX];
    int end = 0;
    if (config_len > CONFIG_BYTES || (config_len > 0 && memchr(config, 0, config_len)))
        return refuse(message, MAYFLY_CONFIG, "the configuration is too long or no text");
    if (config_len > 0) memcpy(text, config, config_len);
    text[config_len] = 0;
    if (sscanf(text, " %31[a-z_] = '%4095[^'\n]' %n", option, value, &end) != 2 || end == 0 || text[end] != 0)
        return refuse(message, MAYFLY_CONFIG, "set key_file = '/absolute/path' or key_credential = 'name', and nothing else");
    int is_file = strcmp(option, "key_file") == 0;
    if (!is_file && strcmp(option, "key_credential") != 0) return refuse(message, MAYFLY_CONFIG, "unknown option %s", option);
    const char *folder = is_file ? "" : getenv("CREDENTIALS_DIRECTORY");
    if (!folder) return refuse(message, MAYFLY_CONFIG, "key_credential: systemd has passed no credentials to this service");
    if (is_file ? value[0] != '/' : value[0] == '.' || strchr(value, '/'))
        return refuse(message, MAYFLY_CONFIG, is_file ? "key_file: not an absolute path" : "key_credential: not a plain name");
    int length = snprintf(path, sizeof path, is_file ? "%s%s" : "%s/%s", folder, value);
    if (length < 0 || (size_t)length >= sizeof path) return refuse(message, MAYFLY_CONFIG, "%s: too long", option);

    struct stat st;
    int32_t status = MAYFLY_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return refuse(message, MAYFLY_CONFIG, "%s: %s", option, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size != KEY_BYTES)
        status = refuse(message, MAYFLY_CONFIG, "%s: not a file of %d bytes", option, KEY_BYTES);
    else if (is_file && ((st.st_uid != 0 && st.st_uid != geteuid()) || (st.st_mode & 077) != 0))
        status = refuse(message, MAYFLY_CONFIG, "key_file: must be root's or this user's and closed to others (chmod 600)");
    else if (transfer_all(fd, secret, NULL, KEY_BYTES) != 0)
        status = refuse_errno(message, option);
    close(fd);
    return status;
}

/* Two values of the configured secret: the key that seals, and a name for it that may stand in the file. */
static int32_t take_secret(vault *v, const uint8_t *config, size_t config_len, mayfly_message *message) {
    static const uint8_t seal_label[] = "mayfly example-c v1 seal", id_label[] = "mayfly example-c v1 key id";
    uint8_t secret[KEY_BYTES], id[EVP_MAX_MD_SIZE];
    int32_t status = read_secret(config, config_len, secret, message);
    if (status == MAYFLY_OK &&
        (!HMAC(EVP_sha256(), secret, KEY_BYTES, seal_label, sizeof seal_label - 1, v->seal_key, NULL) ||
         !HMAC(EVP_sha256(), secret, KEY_BYTES, id_label, sizeof id_label - 1, id, NULL)))
        status = out_of_memory(message);
    explicit_bzero(secret, sizeof secret);
    if (status == MAYFLY_OK) memcpy(v->key_id, id, ID_BYTES);
    return status;
}

/* Opens and locks the data folder. */
static int32_t take_folder(vault *v, const uint8_t *path, size_t length, mayfly_message *message) {
    char text[MAYFLY_PATH_BYTES_MAX + 1];
    if (length == 0 || length > MAYFLY_PATH_BYTES_MAX || memchr(path, 0, length))
        return refuse(message, MAYFLY_INVALID, "data folder: not a path");
    memcpy(text, path, length);
    text[length] = 0;
    v->dir = open(text, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (v->dir < 0) return refuse_errno(message, "data folder");
    if (flock(v->dir, LOCK_EX | LOCK_NB) == 0) return MAYFLY_OK;
    if (errno != EWOULDBLOCK) return refuse_errno(message, "data folder");
    return refuse(message, MAYFLY_BUSY, "another process uses this data folder");
}

static void vault_close(void *handle) {
    vault *v = handle;
    if (v->dir >= 0) close(v->dir);
    explicit_bzero(v, sizeof *v);
    munmap(v, sizeof *v);
}

static int32_t vault_open(const uint8_t *config, size_t config_len, const uint8_t *data_dir, size_t data_dir_len,
                          void **handle, mayfly_message *message) {
    state s;
    vault *v = mmap(NULL, sizeof *v, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (v == MAP_FAILED) return refuse_errno(message, "memory");
    v->dir = -1;
    v->is_unsettled = 1; /* the process before this one may have been killed anywhere */
    int32_t status = MAYFLY_OK;
    if (mlock(v, sizeof *v) != 0) status = refuse_errno(message, "locked memory (LimitMEMLOCK= of the service)");
    /* no openssl.cnf: nothing that it names is loaded into this process */
    if (status == MAYFLY_OK && OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL) != 1) status = out_of_memory(message);
    if (status == MAYFLY_OK) status = take_secret(v, config, config_len, message);
    if (status == MAYFLY_OK) status = take_folder(v, data_dir, data_dir_len, message);
    if (status == MAYFLY_OK) status = read_state(v, &s, message);
    explicit_bzero(&s, sizeof s);
    if (status == MAYFLY_OK)
        *handle = v;
    else
        vault_close(v);
    return status;
}

/* --- The functions of the table ------------------------------------------------------------------------------------- */

static void fill_text(uint8_t *field, size_t size, const char *text) {
    size_t length = strlen(text);
    memset(field, 0, size);
    memcpy(field, text, length < size ? length : size);
}

static int32_t vault_describe(void *handle, mayfly_vault_description *out, mayfly_message *message) {
    (void)handle;
    if (out->size < sizeof *out) return refuse(message, MAYFLY_INVALID, "describe: the caller's struct is too small");
    out->software_only = 1;
    out->identity_algs = 1u << MAYFLY_ALG_P256;
    out->tiers = 1u << MAYFLY_TIER_BOOT | 1u << MAYFLY_TIER_WINDOW | 1u << MAYFLY_TIER_PER_RELEASE;
    fill_text(out->hardware, sizeof out->hardware, "none: a sealed file");
    fill_text(out->security_note, sizeof out->security_note,
              "software only, an example: a copy of the folder and the key open every generation of which a copy exists, "
              "revoked ones included");
    return MAYFLY_OK;
}

static int32_t vault_identity_public(void *handle, uint32_t alg, uint32_t create, uint32_t *alg_out, uint8_t *key,
                                     size_t key_capacity, size_t *key_len, mayfly_message *message) {
    state s;
    if (alg != 0 && alg != MAYFLY_ALG_P256) return refuse(message, MAYFLY_UNSUPPORTED, "identity keys are P-256 here");
    *key_len = POINT_BYTES;
    if (key_capacity < POINT_BYTES) return refuse(message, MAYFLY_BUFFER_TOO_SMALL, "an identity key takes 33 bytes");
    int32_t status = read_state(handle, &s, message);
    if (status == MAYFLY_OK && !s.has_identity) {
        if (!create)
            status = refuse(message, MAYFLY_NO_IDENTITY, "there is no identity key yet");
        else
            status = make_identity(&s) ? save(handle, &s, message) : out_of_memory(message);
    }
    if (status == MAYFLY_OK) {
        *alg_out = MAYFLY_ALG_P256;
        memcpy(key, s.identity_public, POINT_BYTES);
    }
    explicit_bzero(&s, sizeof s);
    return status;
}

static int32_t vault_identity_sign(void *handle, const uint8_t *data, size_t data_len, uint8_t *signature,
                                   size_t signature_len, mayfly_message *message) {
    state s;
    if (data_len > MAYFLY_SIGN_MESSAGE_BYTES_MAX) return refuse(message, MAYFLY_TOO_LARGE, "the message is above 64 KiB");
    if (signature_len != MAYFLY_SIGNATURE_BYTES) return refuse(message, MAYFLY_INVALID, "a signature has 64 bytes");
    int32_t status = read_state(handle, &s, message);
    if (status == MAYFLY_OK && !s.has_identity)
        status = refuse(message, MAYFLY_NO_IDENTITY, "there is no identity key yet");
    else if (status == MAYFLY_OK && !sign(&s, data, data_len, signature))
        status = out_of_memory(message);
    explicit_bzero(&s, sizeof s);
    return status;
}

static int32_t vault_generation(void *handle, mayfly_generation *out, mayfly_message *message) {
    state s;
    int32_t status = read_state(handle, &s, message);
    out->current = generation_of(&s);
    out->staged = is_staged(&s) ? out->current + 1 : 0;
    explicit_bzero(&s, sizeof s);
    return status;
}

/* What stage and open_key have in common: is there such a tier, does the key fit? */
static int32_t check_key(uint32_t tier, size_t key_len, mayfly_message *message) {
    if (tier >= TIERS) return refuse(message, MAYFLY_INVALID, "there is no tier %u", (unsigned)tier);
    return key_len == KEY_BYTES ? MAYFLY_OK : refuse(message, MAYFLY_INVALID, "a vault key has 32 bytes");
}

static int32_t vault_stage(void *handle, uint64_t next, uint32_t tier, uint8_t *key, size_t key_len,
                           mayfly_message *message) {
    state s;
    int32_t status = check_key(tier, key_len, message);
    if (status != MAYFLY_OK) return status;
    status = read_state(handle, &s, message);
    if (status == MAYFLY_OK && (next == 0 || next - 1 != generation_of(&s)))
        status = refuse(message, MAYFLY_INVALID, "only the generation after the committed one can be staged");
    if (status == MAYFLY_OK && fill_random(s.key[STAGED][tier], KEY_BYTES) != 0)
        status = refuse_errno(message, "random bytes");
    if (status == MAYFLY_OK) {
        s.has_key[STAGED][tier] = 1;
        status = save(handle, &s, message);
    }
    if (status == MAYFLY_OK) memcpy(key, s.key[STAGED][tier], KEY_BYTES);
    explicit_bzero(&s, sizeof s);
    return status;
}

static int32_t vault_open_key(void *handle, uint64_t generation, uint32_t tier, uint8_t *key, size_t key_len,
                              mayfly_message *message) {
    state s;
    int32_t status = check_key(tier, key_len, message);
    if (status != MAYFLY_OK) return status;
    status = read_state(handle, &s, message);
    if (status == MAYFLY_OK && (generation == 0 || generation != generation_of(&s)))
        status = refuse(message, MAYFLY_NO_GENERATION, "this generation is not the committed one");
    else if (status == MAYFLY_OK && !s.has_key[CURRENT][tier])
        status = refuse(message, MAYFLY_NOT_FOUND, "tier %u has no key in this generation", (unsigned)tier);
    if (status == MAYFLY_OK) memcpy(key, s.key[CURRENT][tier], KEY_BYTES);
    explicit_bzero(&s, sizeof s);
    return status;
}

static int32_t vault_commit(void *handle, uint64_t next, mayfly_message *message) {
    state s;
    int32_t status = read_state(handle, &s, message);
    uint64_t current = generation_of(&s);
    int is_done = next > 0 && next == current;
    if (status == MAYFLY_OK && !is_done && (next == 0 || next - 1 != current || !is_staged(&s)))
        status = refuse(message, MAYFLY_NO_GENERATION, "this generation is neither staged nor committed");
    if (status == MAYFLY_OK && !is_done) {
        set_generation(&s, next);
        memcpy(s.has_key[CURRENT], s.has_key[STAGED], sizeof s.has_key[STAGED]);
        memcpy(s.key[CURRENT], s.key[STAGED], sizeof s.key[STAGED]);
        memset(s.has_key[STAGED], 0, sizeof s.has_key[STAGED]);
        memset(s.key[STAGED], 0, sizeof s.key[STAGED]);
        status = save(handle, &s, message);
    }
    explicit_bzero(&s, sizeof s);
    return status;
}

static int32_t vault_discard_staged(void *handle, mayfly_message *message) {
    state s;
    int32_t status = read_state(handle, &s, message);
    if (status == MAYFLY_OK && is_staged(&s)) {
        memset(s.has_key[STAGED], 0, sizeof s.has_key[STAGED]);
        memset(s.key[STAGED], 0, sizeof s.key[STAGED]);
        status = save(handle, &s, message);
    }
    explicit_bzero(&s, sizeof s);
    return status;
}

static int32_t vault_random(void *handle, uint8_t *out, size_t out_len, mayfly_message *message) {
    (void)handle;
    if (out_len > MAYFLY_RANDOM_BYTES_MAX) return refuse(message, MAYFLY_TOO_LARGE, "more than 1024 random bytes");
    return fill_random(out, out_len) == 0 ? MAYFLY_OK : refuse_errno(message, "random bytes");
}

static int32_t vault_health(void *handle, mayfly_health *out, mayfly_message *message) {
    const vault *v = handle;
    struct statvfs fs;
    struct stat st;
    if (out->size < sizeof *out) return refuse(message, MAYFLY_INVALID, "health: the caller's struct is too small");
    if (fstatvfs(v->dir, &fs) != 0) return refuse_errno(message, "data folder");
    int is_full = fs.f_bavail == 0 || (fs.f_flag & ST_RDONLY) != 0;
    out->state = is_full ? MAYFLY_HEALTH_READ_ONLY : MAYFLY_HEALTH_OK;
    out->free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    out->used_bytes = find(v, VAULT, &st) == 1 ? (uint64_t)st.st_size : 0;
    out->sync_micros = v->sync_micros;
    fill_text(out->detail, sizeof out->detail, is_full ? "the file system is full or read-only" : "");
    return MAYFLY_OK;
}

#define NAME "example-c"
#define VERSION "1"

/* attest and control stay null: this vault offers neither */
static const mayfly_vault_table table = {
    .header = {.size = sizeof(mayfly_vault_table),
               .abi_version = MAYFLY_ABI_VERSION,
               .kind = MAYFLY_KIND_VAULT,
               .flags = 0,
               .name = (const uint8_t *)NAME,
               .name_len = sizeof NAME - 1,
               .version = (const uint8_t *)VERSION,
               .version_len = sizeof VERSION - 1},
    .open = vault_open,
    .close = vault_close,
    .describe = vault_describe,
    .identity_public = vault_identity_public,
    .identity_sign = vault_identity_sign,
    .generation = vault_generation,
    .stage = vault_stage,
    .open_key = vault_open_key,
    .commit = vault_commit,
    .discard_staged = vault_discard_staged,
    .random = vault_random,
    .health = vault_health,
};

const mayfly_header *mayfly_plugin_v1(void) { return &table.header; }
