"""Drives the C table of the module as a C program would. Ends with "all done", or with the assertion that failed."""

import ctypes, hashlib, hmac, os
from ctypes import c_ubyte, c_ulong, c_void_p, byref, sizeof

NAMES = """Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo GetMechanismList GetMechanismInfo InitToken
InitPIN SetPIN OpenSession CloseSession CloseAllSessions GetSessionInfo GetOperationState SetOperationState Login Logout CreateObject
CopyObject DestroyObject GetObjectSize GetAttributeValue SetAttributeValue FindObjectsInit FindObjects FindObjectsFinal EncryptInit Encrypt
EncryptUpdate EncryptFinal DecryptInit Decrypt DecryptUpdate DecryptFinal DigestInit Digest DigestUpdate DigestKey DigestFinal SignInit
Sign SignUpdate SignFinal SignRecoverInit SignRecover VerifyInit Verify VerifyUpdate VerifyFinal VerifyRecoverInit VerifyRecover
DigestEncryptUpdate DecryptDigestUpdate SignEncryptUpdate DecryptVerifyUpdate GenerateKey GenerateKeyPair WrapKey UnwrapKey DeriveKey
SeedRandom GenerateRandom GetFunctionStatus CancelFunction WaitForSlotEvent""".split()

class Table(ctypes.Structure):
    _fields_ = [("version", c_ubyte * 2)] + [(name, c_void_p) for name in NAMES]

class Attribute(ctypes.Structure):
    _fields_ = [("kind", c_ulong), ("value", c_void_p), ("length", c_ulong)]

class Mechanism(ctypes.Structure):
    _fields_ = [("code", c_ulong), ("parameter", c_void_p), ("length", c_ulong)]

class GcmParameters(ctypes.Structure):
    _fields_ = [("iv", c_void_p), ("iv_bytes", c_ulong), ("iv_bits", c_ulong), ("aad", c_void_p), ("aad_bytes", c_ulong), ("tag", c_ulong)]

module = ctypes.CDLL(os.environ["MAYFLY_MODULE"])
table = ctypes.POINTER(Table)()
assert module.C_GetFunctionList(byref(table)) == 0

def call(name, *arguments):
    types = [c_ulong if isinstance(argument, int) else c_void_p for argument in arguments]
    pointers = [a if isinstance(a, (int, type(None))) else ctypes.cast(a, c_void_p) for a in arguments]
    return ctypes.CFUNCTYPE(c_ulong, *types)(getattr(table.contents, name))(*pointers)

def ok(name, *arguments):
    code = call(name, *arguments)
    assert code == 0, f"C_{name}: {code:#x}"

def refused(expected, name, *arguments):
    code = call(name, *arguments)
    assert code == expected, f"C_{name}: {code:#x}, not {expected:#x}"

def buffer(data):
    return (c_ubyte * max(len(data), 1)).from_buffer_copy(bytes(data) or b"\0")

def number(value):
    return value.to_bytes(8, "little")

KEEP = []  # what structures point to

def template(attributes):
    rows = (Attribute * len(attributes))()
    for row, (kind, value) in zip(rows, attributes.items()):
        KEEP.append(buffer(value))
        row.kind, row.value, row.length = kind, ctypes.addressof(KEEP[-1]), len(value)
    KEEP.append(rows)
    return rows, len(rows)

def mechanism(code, parameter=b""):
    KEEP.append(buffer(parameter))
    address = ctypes.addressof(KEEP[-1]) if parameter else None
    KEEP.append(Mechanism(code, address, len(parameter)))
    return byref(KEEP[-1])

def gcm(iv, aad, tag):
    KEEP.extend([buffer(iv), buffer(aad)])
    return bytes(GcmParameters(ctypes.addressof(KEEP[-2]), len(iv), 8 * len(iv), ctypes.addressof(KEEP[-1]), len(aad), tag))

def out(name, *arguments, room=1 << 17):
    """A call that ends with a buffer and a length; what it gave."""
    place, length = buffer(b"\xee" * (room + 16)), c_ulong(room)
    code = call(name, *arguments, place, byref(length))
    assert bytes(place[room:]) == b"\xee" * 16, f"C_{name} writes over the end"
    return code, length.value, bytes(place[: min(room, length.value)])

def result(name, *arguments, **rest):
    code, _, data = out(name, *arguments, **rest)
    assert code == 0, f"C_{name}: {code:#x}"
    return data

CLASS, TOKEN, LABEL, VALUE, KEY_TYPE = 0, 1, 3, 0x11, 0x100
VALUE_LEN, EC_PARAMS, ALWAYS_AUTHENTICATE = 0x161, 0x180, 0x202
YES, NO = b"\1", b"\0"
AES_KEY_GEN, EC_KEY_PAIR_GEN = 0x1080, 0x1040
CBC, PAD, CTR, GCM = 0x1082, 0x1085, 0x1086, 0x1087
SHA256, SHA256_HMAC = 0x250, 0x251
IV = bytes(range(16))

ok("Initialize", None)
count = c_ulong()
ok("GetSlotList", 1, None, byref(count))
slots = (c_ulong * count.value)()
ok("GetSlotList", 1, slots, byref(count))
label = os.environ["MAYFLY_TOKEN_LABEL"].encode().ljust(32)
def info(slot):
    token = (c_ubyte * 208)()
    ok("GetTokenInfo", slot, token)
    return bytes(token)
slot = next(slot for slot in slots if info(slot)[:32] == label)
flags = int.from_bytes(info(slot)[96:104], "little")
session = c_ulong()
ok("OpenSession", slot, 6, None, None, byref(session))
s = session.value
pin = os.environ["MAYFLY_USER_PIN"].encode()
ok("Login", s, 1, buffer(pin), len(pin))

def made(name, *arguments):
    handle = c_ulong()
    ok(name, *arguments, byref(handle))
    return handle.value

aes = made("GenerateKey", s, mechanism(AES_KEY_GEN), *template({VALUE_LEN: number(32), TOKEN: YES, LABEL: b"table"}))
secret = bytes(range(40))
mac_key = made("CreateObject", s, *template({CLASS: number(4), KEY_TYPE: number(0x10), VALUE: secret, TOKEN: NO}))
public, private = c_ulong(), c_ulong()
curve = bytes.fromhex("06082a8648ce3d030107")
ok("GenerateKeyPair", s, mechanism(EC_KEY_PAIR_GEN), *template({EC_PARAMS: curve}), *template({TOKEN: NO}), byref(public), byref(private))
public, private = public.value, private.value
data = os.urandom(70_000)

# --- the same memory for input and output ---
for length in (4096, 65_536):
    for code, parameter in ((CBC, IV), (PAD, IV), (CTR, number(128) + IV), (GCM, gcm(IV[:12], b"aad", 128))):
        memory, room = buffer(data[:length] + bytes(16)), c_ulong(length + 16)
        ok("EncryptInit", s, mechanism(code, parameter), aes)
        ok("Encrypt", s, memory, length, memory, byref(room))
        assert bytes(memory[:64]) != data[:64]
        ok("DecryptInit", s, mechanism(code, parameter), aes)
        sealed, room = room.value, c_ulong(length + 16)
        ok("Decrypt", s, memory, sealed, memory, byref(room))
        assert (room.value, bytes(memory[:length])) == (length, data[:length]), hex(code)

# --- two operations at once (CKF_DUAL_CRYPTO_OPERATIONS) ---
assert flags & 0x200
for beside, init, end in (("Digest", ("DigestInit", s, mechanism(SHA256)), "DigestFinal"), ("Sign", ("SignInit", s, mechanism(SHA256_HMAC), mac_key), "SignFinal")):
    right = hashlib.sha256(data).digest() if beside == "Digest" else hmac.digest(secret, data, "sha256")
    ok(*init)
    ok("EncryptInit", s, mechanism(CBC, IV), aes)
    sealed = b"".join(result(f"{beside}EncryptUpdate", s, buffer(data[at : at + 30_000]), len(data[at : at + 30_000])) for at in range(0, len(data), 30_000))
    assert result("EncryptFinal", s) == b"" and len(sealed) == len(data)
    assert result(end, s) == right, beside
    other = "VerifyInit" if beside == "Sign" else "DigestInit"
    ok(other, *init[1:])
    ok("DecryptInit", s, mechanism(CBC, IV), aes)
    assert result(f"Decrypt{'Verify' if beside == 'Sign' else 'Digest'}Update", s, buffer(sealed), len(sealed)) == data
    ok("DecryptFinal", s, buffer(b""), byref(c_ulong(0)))
    if beside == "Sign":
        ok("VerifyFinal", s, buffer(right), len(right))
    else:
        assert result(end, s) == right

# --- lengths, buffers that are too small, errors that end an operation ---
plain = data[:1000]
for code, parameter, length in ((CBC, IV, 992), (PAD, IV, 1008), (GCM, gcm(IV[:12], b"", 96), 1012)):
    text = plain[:992] if code == CBC else plain
    ok("EncryptInit", s, mechanism(code, parameter), aes)
    refused(0x90, "EncryptInit", s, mechanism(code, parameter), aes)
    room = c_ulong()
    ok("Encrypt", s, buffer(text), len(text), None, byref(room))
    assert room.value == length
    assert out("Encrypt", s, buffer(text), len(text), room=length - 1)[:2] == (0x150, length)
    sealed = result("Encrypt", s, buffer(text), len(text), room=length)
    refused(0x91, "Encrypt", s, buffer(text), len(text), None, byref(room))
    for size in (7, 16, 333):
        parts = [sealed[at : at + size] for at in range(0, length, size)]
        ok("DecryptInit", s, mechanism(code, parameter), aes)
        opened = b"".join(result("DecryptUpdate", s, buffer(part), len(part), room=size + 16) for part in parts)
        assert opened + result("DecryptFinal", s, room=1024) == text, (hex(code), size)
    ok("DecryptInit", s, mechanism(code, parameter), aes)
    result("DecryptUpdate", s, buffer(sealed), 32)
    refused(0x90, "Decrypt", s, buffer(sealed), len(sealed), None, byref(room))
    refused(0x91, "DecryptFinal", s, buffer(b""), byref(room))
    ok("DecryptInit", s, mechanism(code, parameter), aes)
    assert out("Decrypt", s, buffer(sealed), len(sealed), room=100)[0] == 0x150
    assert result("Decrypt", s, buffer(sealed), len(sealed), room=len(text)) == text
    if code != CBC:
        changed = sealed[:-1] + bytes([sealed[-1] ^ 0xff])
        ok("DecryptInit", s, mechanism(code, parameter), aes)
        assert out("Decrypt", s, buffer(changed), len(changed))[0] == 0x40
        refused(0x91, "Decrypt", s, buffer(sealed), len(sealed), None, byref(room))

# --- C_GetMechanismInfo tells the truth ---
ok("GetMechanismList", slot, None, byref(count))
codes = (c_ulong * count.value)()
ok("GetMechanismList", slot, codes, byref(count))
general = {0x222, 0x257, 0x252, 0x262, 0x272}
parameters = {CBC: IV, PAD: IV, CTR: number(128) + IV, GCM: gcm(IV[:12], b"", 128)} | {code: number(10) for code in general}
uses = {0x100: ("Encrypt", aes), 0x200: ("Decrypt", aes), 0x800: ("Sign", None), 0x2000: ("Verify", None)}
for code in codes:
    about = (c_ulong * 3)()
    ok("GetMechanismInfo", slot, code, about)
    least, most, can = about
    assert can and least <= most, hex(code)
    is_ec = 0x1040 <= code <= 0x1048
    for flag, (word, key) in uses.items():
        key = key or (mac_key if not is_ec else private if word == "Sign" else public)
        begun = call(f"{word}Init", s, mechanism(code, parameters.get(code, b"")), key)
        assert (begun == 0) == bool(can & flag), f"{code:#x} {word}: {begun:#x}, flags {can:#x}"
        assert begun in (0, 0x70), f"{code:#x} {word}: {begun:#x}"
        if begun == 0:
            ok(f"{word}Init", s, None, 0)
    if can & 0x400:
        ok("DigestInit", s, mechanism(code))
        result("Digest", s, buffer(b"x"), 1)
    if can & 0x8000:
        for bytes_ in {least, min(most, 4096)}:
            made("GenerateKey", s, mechanism(code), *template({VALUE_LEN: number(bytes_), TOKEN: NO}))
    assert not can & 0x60000, "wrapping is not offered"
handle = c_ulong()
refused(0x70, "DeriveKey", s, mechanism(0x1050), private, *template({}), byref(handle))  # CKM_ECDH1_DERIVE
refused(0x70, "WrapKey", s, mechanism(0x210A), aes, aes, None, byref(handle))  # CKM_AES_KEY_WRAP_PAD

# --- keys that want the PIN before each use ---
careful = made("GenerateKey", s, mechanism(AES_KEY_GEN), *template({VALUE_LEN: number(16), TOKEN: NO, ALWAYS_AUTHENTICATE: YES}))
state = (c_ulong * 4)()
for turn in range(2):
    ok("EncryptInit", s, mechanism(CBC, IV), careful)
    refused(0x101, "Encrypt", s, buffer(plain[:16]), 16, buffer(bytes(16)), byref(c_ulong(16)))
    ok("GetSessionInfo", s, state)
    assert state[1] == 3, "the user's own login stays"
    ok("EncryptInit", s, mechanism(CBC, IV), careful)
    ok("Login", s, 2, buffer(pin), len(pin))
    assert len(result("Encrypt", s, buffer(plain[:16]), 16)) == 16

# --- nothing is left behind ---
def files():
    return len(os.listdir("/proc/self/fd"))
before = files()
for turn in range(300):
    ok("OpenSession", slot, 4, None, None, byref(session))
    ok("SignInit", session.value, mechanism(SHA256_HMAC), mac_key)
    assert result("Sign", session.value, buffer(plain), len(plain), room=32) == hmac.digest(secret, plain, "sha256")
    ok("CloseSession", session.value)
assert files() == before

# --- over C_Finalize nothing goes on ---
for turn in range(20):
    ok("Finalize", None)
    ok("Initialize", None)
    ok("OpenSession", slot, 6, None, None, byref(session))
    s = session.value
    refused(0x60, "SignInit", s, mechanism(SHA256_HMAC), mac_key)
    ok("Login", s, 1, buffer(pin), len(pin))
ok("DestroyObject", s, aes)
ok("Finalize", None)
print("all done")
