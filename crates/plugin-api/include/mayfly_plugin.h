/*
 * The plugin interface of Mayfly, version 1.
 *
 * A plugin is a shared library that exports one function, mayfly_plugin_v1, which gives a static table. It is loaded by a
 * small host process of its own (mayfly-plugin-host), never by the agent or the gateway. docs/write-a-plugin.md leads
 * through making one, plugins/example-c is one, docs/formats/plugin-abi.md has the rules at length.
 *
 * Versions. The table starts with its size, the interface version and its kind; these are read alone, first. abi_version
 *   must be MAYFLY_ABI_VERSION: another number is another layout, and another exported symbol. Within a version functions
 *   are only ever appended, and only optional ones: a host takes what lies beyond `size` as null, and leaves alone what it
 *   does not know. Structs that start with `size` grow in the same way: the caller says how much of it there is, and a plugin
 *   that knows more fills no more; one that is given less than it needs answers MAYFLY_INVALID.
 * Threads. All calls come from one thread, one after the other, and block. Its stack has 1 MiB and is wiped after each
 *   call, its signals are masked. A plugin may have threads of its own (signals masked there, too), but no processes. A
 *   second process with the same data folder is possible at any time: `open` answers MAYFLY_BUSY there, except for a
 *   backend that serves all alike.
 * Time. Each call has a limit (30 s unless configured); beyond it the process is killed. It is also killed when its caller
 *   ends, at any instruction and without `close`: what is stored must be good at every moment.
 * Ownership. The table, its texts and functions live as long as the process; the library is never unloaded. A handle is
 *   the plugin's from `open` to `close`. All other pointers are the caller's and valid during the call only: copy, never
 *   keep, never free. A pointer whose length is 0 may be null. Texts have a length and no terminator.
 * Answers. 0 (MAYFLY_OK) or a status below; any other number, and a length beyond its buffer, is a defect for which the
 *   process is killed. Outputs count only with 0, unless said otherwise. With another status a reason goes into
 *   `message`: at most `capacity` bytes (MAYFLY_MESSAGE_BYTES_MAX) of UTF-8, the count into `length` (0 before the call).
 *   What failed, on what, what to do next; lower case, no full stop, no newline, nothing secret.
 * Secrets are written only where the caller points, and wiped everywhere else before the function returns
 *   (explicit_bzero; memset is removed by the compiler).
 * Nothing may unwind or longjmp across the table.
 *
 * The same layout is written in Rust (crates/plugin-api/abi); a test compares every offset, type and number.
 */
#ifndef MAYFLY_PLUGIN_H
#define MAYFLY_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define MAYFLY_STATIC_ASSERT static_assert
#else
#define MAYFLY_STATIC_ASSERT _Static_assert
#endif

#define MAYFLY_ABI_VERSION 1u

#define MAYFLY_KIND_VAULT 1u
#define MAYFLY_KIND_BACKEND 2u

/* mayfly_header.flags */
#define MAYFLY_FLAG_NEEDS_NETWORK 1u /* sockets other than AF_UNIX */

/* Statuses: choose the nearest; the caller decides by some of them, people see all. */
#define MAYFLY_OK 0
#define MAYFLY_INTERNAL 1         /* a defect, or nothing better fits */
#define MAYFLY_CONFIG 2           /* the configuration, or what it points at, is wrong */
#define MAYFLY_UNSUPPORTED 3      /* not offered by this plugin */
#define MAYFLY_INVALID 4          /* an argument is out of range, or does not fit the state */
#define MAYFLY_IO 5               /* the system or the device failed */
#define MAYFLY_BUSY 6             /* another process holds it */
#define MAYFLY_AUTH 7             /* wrong passphrase, PIN or authorisation value */
#define MAYFLY_CORRUPT 8          /* something stored is damaged or not ours */
#define MAYFLY_NO_GENERATION 9    /* this generation does not open */
#define MAYFLY_POLICY_PENDING 10  /* sealed under another state of the machine */
#define MAYFLY_VAULT_LOST 11      /* the chip or token is another one, or was cleared */
#define MAYFLY_LOCKOUT 12         /* refused for a while after failed authorisations */
#define MAYFLY_TRANSIENT 13       /* try again */
#define MAYFLY_NO_IDENTITY 14     /* there is no identity key, and none was to be made */
#define MAYFLY_BUFFER_TOO_SMALL 15 /* the length that is needed is in the length output */
#define MAYFLY_CONFLICT 16        /* the head is another one; it is in the output */
#define MAYFLY_UNKNOWN 17         /* not known whether the append was stored */
#define MAYFLY_PRUNED 18          /* the first entry that is left is in the output */
#define MAYFLY_READ_ONLY 19       /* no writes now; reads go on */
#define MAYFLY_TOO_LARGE 20       /* above a declared limit */
#define MAYFLY_NOT_FOUND 21       /* nothing is stored under this */

/* Limits, in bytes */
#define MAYFLY_VAULT_KEY_BYTES 32
#define MAYFLY_SIGNATURE_BYTES 64
#define MAYFLY_PUBLIC_KEY_BYTES_MAX 33
#define MAYFLY_SIGN_MESSAGE_BYTES_MAX (64 * 1024)
#define MAYFLY_RANDOM_BYTES_MAX 1024
#define MAYFLY_CONFIG_BYTES_MAX (64 * 1024)
#define MAYFLY_PATH_BYTES_MAX 4096
#define MAYFLY_NAME_BYTES_MAX 32
#define MAYFLY_MESSAGE_BYTES_MAX 1024
#define MAYFLY_BLOB_BYTES_MAX (64 * 1024)
#define MAYFLY_BUNDLE_BYTES_MAX (1024 * 1024)
#define MAYFLY_READ_BYTES_MAX (2 * 1024 * 1024)
#define MAYFLY_CHECKPOINT_BYTES_MAX (16 * 1024)
#define MAYFLY_SNAPSHOT_CHUNK_BYTES_MAX (256 * 1024)
#define MAYFLY_SNAPSHOT_BYTES_MAX (4ull * 1024 * 1024 * 1024)
#define MAYFLY_READ_PREFIX_BYTES 56
#define MAYFLY_LEASE_NAME_BYTES_MAX 64

/* Identity algorithms (bit n of identity_algs: algorithm n is offered) */
#define MAYFLY_ALG_ED25519 1u /* RFC 8032; 32-byte public key */
#define MAYFLY_ALG_P256 2u    /* ECDSA with SHA-256; 33-byte compressed point; signature r || s, big-endian, s <= n/2 */

/* Tiers (bit n of tiers: tier n is offered) */
#define MAYFLY_TIER_BOOT 0u
#define MAYFLY_TIER_WINDOW 1u
#define MAYFLY_TIER_PER_RELEASE 2u

/* mayfly_health.state */
#define MAYFLY_HEALTH_OK 0u
#define MAYFLY_HEALTH_READ_ONLY 1u
#define MAYFLY_HEALTH_DOWN 2u
#define MAYFLY_HEALTH_POLICY_PENDING 3u
#define MAYFLY_HEALTH_VAULT_LOST 4u
#define MAYFLY_HEALTH_LOCKOUT 5u

/* mayfly_caps.flags */
#define MAYFLY_CAP_DURABLE_ON_ACK 1u
#define MAYFLY_CAP_LINEARIZABLE 2u
#define MAYFLY_CAP_WAIT 4u

typedef struct mayfly_header {
    uint32_t size;        /* sizeof the whole table, at most 4096; functions beyond it count as null */
    uint32_t abi_version; /* MAYFLY_ABI_VERSION */
    uint32_t kind;        /* MAYFLY_KIND_... */
    uint32_t flags;       /* MAYFLY_FLAG_...; unknown bits are refused */
    const uint8_t *name;  /* [a-z0-9-], 1 to MAYFLY_NAME_BYTES_MAX: "file", "tpm", "embedded" */
    size_t name_len;
    const uint8_t *version; /* for people; printable ASCII, at most MAYFLY_NAME_BYTES_MAX */
    size_t version_len;
} mayfly_header;

typedef struct mayfly_message {
    uint8_t *text;
    size_t capacity;
    size_t length; /* out */
} mayfly_message;

typedef struct mayfly_vault_description {
    uint32_t size;          /* in: sizeof as the caller knows it */
    uint32_t software_only; /* 1: nothing but software protects the keys */
    uint32_t identity_algs; /* bits */
    uint32_t tiers;         /* bits */
    uint8_t hardware[256];      /* what seals; UTF-8, zero-padded */
    uint8_t security_note[512]; /* what is not protected; UTF-8, zero-padded */
} mayfly_vault_description;

typedef struct mayfly_generation {
    uint64_t current; /* committed; 0 before the first commit */
    uint64_t staged;  /* current + 1 when a tier is staged, else 0 */
} mayfly_generation;

typedef struct mayfly_health {
    uint32_t size;  /* in: sizeof as the caller knows it */
    uint32_t state; /* MAYFLY_HEALTH_... */
    uint64_t free_bytes;  /* UINT64_MAX: has no meaning here */
    uint64_t used_bytes;
    uint64_t sync_micros; /* duration of the last durable write; 0: none yet */
    uint8_t detail[256];  /* the reason when state is not 0; UTF-8, zero-padded */
} mayfly_health;

typedef struct mayfly_head {
    uint64_t size;  /* number of entries */
    uint64_t epoch; /* of the sequencer; never falls */
    uint8_t bundle_hash[32]; /* of the last bundle; all zero while empty */
} mayfly_head;

typedef struct mayfly_caps {
    uint32_t size;  /* in: sizeof as the caller knows it */
    uint32_t flags; /* MAYFLY_CAP_... */
    uint64_t bundle_bytes_max; /* 64 KiB to MAYFLY_BUNDLE_BYTES_MAX */
    uint64_t capacity_bytes;   /* UINT64_MAX: as the disk */
} mayfly_caps;

typedef struct mayfly_snapshot_info {
    uint64_t size;        /* number of entries that the state covers */
    uint64_t total_bytes; /* of the whole snapshot */
    uint8_t state_hash[32];
} mayfly_snapshot_info;

/* In front of each bundle in the answer of `read`; integers little-endian whatever the machine: first u64, end u64,
 * bundle hash 32 bytes, length u64; then the bundle. */

/*
 * A vault: one identity key, and per generation one 32-byte vault key per tier. Devices seal their shards under vault keys;
 * to revoke is to stage the next generation, seal anew what stays, and commit.
 *
 *              stage(g+1, tier) ...                      commit(g+1)
 *   g opens  ------------------->  g opens, g+1 staged  ------------->  g+1 opens, g is destroyed
 *
 * The first generation is 1; before it `current` is 0 and nothing opens. At every moment, whatever was killed when, exactly
 * one generation opens. All functions may be repeated after a call of which the outcome is not known.
 */
typedef struct mayfly_vault_table {
    mayfly_header header;
    /*
     * Opens the vault of a data folder (mode 0700, this plugin's alone, also the working folder) and makes what is missing.
     * config: text of the agent's configuration, TOML by custom, at most MAYFLY_CONFIG_BYTES_MAX; refuse unknown keys.
     * data_dir: an absolute path, at most MAYFLY_PATH_BYTES_MAX. Called once in a process. *handle must not be null after 0.
     * CONFIG, AUTH, BUSY, CORRUPT, IO, VAULT_LOST, POLICY_PENDING.
     */
    int32_t (*open)(const uint8_t *config, size_t config_len, const uint8_t *data_dir, size_t data_dir_len, void **handle,
                    mayfly_message *message);
    /* Ends the handle; cannot fail. Not called when the process is killed. */
    void (*close)(void *handle);
    /* What seals here, and what that does not protect against; the same answer each time. At least one algorithm and the
     * boot tier are offered. */
    int32_t (*describe)(void *handle, mayfly_vault_description *out, mayfly_message *message);
    /*
     * The public half of the identity key. alg 0: whichever there is (or the preferred one, when made now). create 1: makes
     * it, inside the vault and durably, when there is none; it is the same key for ever. key: 32 bytes for Ed25519, 33 for
     * P-256, the count into *key_len. NO_IDENTITY: none, and create is 0. UNSUPPORTED: of another algorithm than asked for.
     */
    int32_t (*identity_public)(void *handle, uint32_t alg, uint32_t create, uint32_t *alg_out, uint8_t *key,
                               size_t key_capacity, size_t *key_len, mayfly_message *message);
    /* Signs a message, whole and not a digest, of 0 to MAYFLY_SIGN_MESSAGE_BYTES_MAX bytes. The caller verifies the
     * signature; one that is wrong ends the process. NO_IDENTITY. */
    int32_t (*identity_sign)(void *handle, const uint8_t *data, size_t data_len, uint8_t *signature,
                             size_t signature_len /* MAYFLY_SIGNATURE_BYTES */, mayfly_message *message);
    /* May be null. Evidence of the chip about itself; steps and formats are the plugin's own. Input and output have at most
     * MAYFLY_BLOB_BYTES_MAX bytes. */
    int32_t (*attest)(void *handle, uint32_t step, const uint8_t *data, size_t data_len, uint8_t *out, size_t out_capacity,
                      size_t *out_len, mayfly_message *message);
    /* The truth about the present state, above all when folder, chip or token were put back to an earlier one: the ledger
     * holds the last acknowledged generation, and refuses a vault that is behind. */
    int32_t (*generation)(void *handle, mayfly_generation *out, mayfly_message *message);
    /*
     * Makes a fresh random key of `tier` for generation `next`, stores it durably, and only then gives it out. It does not
     * open before the commit. Staging the tier again makes another key and voids the earlier one; other staged tiers stay.
     * INVALID: next is not current + 1, or there is no such tier. UNSUPPORTED: a tier that is not offered.
     */
    int32_t (*stage)(void *handle, uint64_t next, uint32_t tier, uint8_t *key, size_t key_len /* MAYFLY_VAULT_KEY_BYTES */,
                     mayfly_message *message);
    /* The key of a tier of the committed generation. NO_GENERATION: any other generation, staged and revoked ones included.
     * NOT_FOUND: the tier was not staged under it. */
    int32_t (*open_key)(void *handle, uint64_t generation, uint32_t tier, uint8_t *key,
                        size_t key_len /* MAYFLY_VAULT_KEY_BYTES */, mayfly_message *message);
    /*
     * One atomic and durable step: from then on `next` opens and nothing else does, and the keys before it are destroyed as
     * well as the medium allows. What was staged must verifiably open before it may replace what does. 0 also when `next` is
     * committed already. NO_GENERATION: neither staged nor committed.
     */
    int32_t (*commit)(void *handle, uint64_t next, mayfly_message *message);
    /* Destroys what is staged; 0 also when nothing is. */
    int32_t (*discard_staged)(void *handle, mayfly_message *message);
    /* 1 to MAYFLY_RANDOM_BYTES_MAX bytes of the vault's own source; mixed with the kernel's, never used alone. */
    int32_t (*random)(void *handle, uint8_t *out, size_t out_len, mayfly_message *message);
    /* Whether the vault works now. An error only when not even that can be told. */
    int32_t (*health)(void *handle, mayfly_health *out, mayfly_message *message);
    /* May be null. Management of the plugin's own (policies, approvals, unlocking); names have at most
     * MAYFLY_NAME_BYTES_MAX bytes, input and output MAYFLY_BLOB_BYTES_MAX. UNSUPPORTED: a name that is not known. */
    int32_t (*control)(void *handle, const uint8_t *name, size_t name_len, const uint8_t *data, size_t data_len,
                       uint8_t *out, size_t out_capacity, size_t *out_len, mayfly_message *message);
} mayfly_vault_table;

/*
 * A ledger backend: bundles of entries in order under a head. Trusted for order and storage only; what is in a bundle is
 * nothing to it.
 */
typedef struct mayfly_backend_table {
    mayfly_header header;
    /* As for a vault; a backend that serves several processes alike opens for all of them. */
    int32_t (*open)(const uint8_t *config, size_t config_len, const uint8_t *data_dir, size_t data_dir_len, void **handle,
                    mayfly_message *message);
    void (*close)(void *handle);
    /* What is promised; the same answer each time. */
    int32_t (*caps)(void *handle, mayfly_caps *out, mayfly_message *message);
    int32_t (*head)(void *handle, mayfly_head *out, mayfly_message *message);
    /*
     * If the head equals `expected` in all three parts: stores the bundle as entries expected->size to new_head->size - 1 and
     * makes new_head the head, in one durable step. CONFLICT: it does not; *actual has the head. UNKNOWN: it cannot be said
     * whether it was stored. Any other status: certainly not stored. An empty bundle may only raise the epoch.
     */
    int32_t (*append_if_head)(void *handle, const mayfly_head *expected, const mayfly_head *new_head,
                              const uint8_t *bundle, size_t bundle_len, mayfly_head *actual, mayfly_message *message);
    /*
     * Whole bundles from the one that contains entry `from`, about bytes_max of them but at least one, each after a prefix
     * of MAYFLY_READ_PREFIX_BYTES (see above). At or beyond the head: *out_len 0. PRUNED: *first has the first entry left.
     */
    int32_t (*read)(void *handle, uint64_t from, uint64_t bytes_max, uint8_t *out, size_t out_capacity, size_t *out_len,
                    uint64_t *first, mayfly_message *message);
    /* May be null. Returns when the size is above `above` or the time is over; early, late or for nothing is fine. Called in
     * a second process of this plugin. */
    int32_t (*wait)(void *handle, uint64_t above, uint64_t timeout_ms, mayfly_head *out, mayfly_message *message);
    /* Keeps a signed checkpoint of at most MAYFLY_CHECKPOINT_BYTES_MAX for ever; the same size replaces. */
    int32_t (*put_checkpoint)(void *handle, uint64_t size, const uint8_t *data, size_t data_len, mayfly_message *message);
    /* The newest one of at most `size`. NOT_FOUND. */
    int32_t (*latest_checkpoint)(void *handle, uint64_t size, uint64_t *size_out, uint8_t *out, size_t out_capacity,
                                 size_t *out_len, mayfly_message *message);
    /* A piece of at most MAYFLY_SNAPSHOT_CHUNK_BYTES_MAX, in order; offset 0 starts anew, a gap is INVALID. The piece that
     * reaches info->total_bytes publishes the whole at once. */
    int32_t (*put_snapshot)(void *handle, const mayfly_snapshot_info *info, uint64_t offset, const uint8_t *data,
                            size_t data_len, mayfly_message *message);
    /* A piece of the newest published one of at most `size`; at its end *out_len is 0. NOT_FOUND. */
    int32_t (*get_snapshot)(void *handle, uint64_t size, uint64_t offset, mayfly_snapshot_info *info, uint8_t *out,
                            size_t out_capacity, size_t *out_len, mayfly_message *message);
    /* Drops bundles wholly below up_to. INVALID unless a checkpoint and a published snapshot of at least up_to are there. */
    int32_t (*prune)(void *handle, uint64_t up_to, mayfly_message *message);
    int32_t (*health)(void *handle, mayfly_health *out, mayfly_message *message);
    /* May be null. Takes, renews, or with ttl_ms 0 gives back; *held 1 when it is `holder`'s (16 bytes) now. A hint: the
     * append fences the sequencer. name: at most MAYFLY_LEASE_NAME_BYTES_MAX. */
    int32_t (*lease)(void *handle, const uint8_t *name, size_t name_len, const uint8_t *holder, uint64_t ttl_ms,
                     uint32_t *held, mayfly_message *message);
    /* May be null. As for a vault. */
    int32_t (*control)(void *handle, const uint8_t *name, size_t name_len, const uint8_t *data, size_t data_len,
                       uint8_t *out, size_t out_capacity, size_t *out_len, mayfly_message *message);
} mayfly_backend_table;

/* The one exported symbol: the address of a static mayfly_vault_table or mayfly_backend_table. */
#ifdef __GNUC__
__attribute__((visibility("default")))
#endif
const mayfly_header *mayfly_plugin_v1(void);

/* The layout on machines with 64-bit pointers; change nothing here without a new version. */
#if UINTPTR_MAX == UINT64_MAX
MAYFLY_STATIC_ASSERT(sizeof(mayfly_header) == 48, "header");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_header, abi_version) == 4, "header.abi_version");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_header, kind) == 8, "header.kind");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_header, flags) == 12, "header.flags");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_header, name) == 16, "header.name");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_header, version) == 32, "header.version");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_message) == 24, "message");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_vault_description) == 784, "vault_description");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_generation) == 16, "generation");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_health) == 288, "health");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_head) == 48, "head");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_caps) == 24, "caps");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_snapshot_info) == 48, "snapshot_info");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_vault_table, open) == 48, "vault.open");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_vault_table, generation) == 96, "vault.generation");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_vault_table, commit) == 120, "vault.commit");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_vault_table, control) == 152, "vault.control");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_vault_table) == 160, "vault");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_backend_table, open) == 48, "backend.open");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_backend_table, append_if_head) == 80, "backend.append_if_head");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_backend_table, wait) == 96, "backend.wait");
MAYFLY_STATIC_ASSERT(offsetof(mayfly_backend_table, control) == 160, "backend.control");
MAYFLY_STATIC_ASSERT(sizeof(mayfly_backend_table) == 168, "backend");
#endif

#ifdef __cplusplus
}
#endif

#endif
