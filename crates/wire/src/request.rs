//! What applications ask.
//!
//! `token` is the slot id. `session` is the *module's* number of a PKCS#11 session, unique within the
//! application, 0 for none: the agent learns of a session when something of it is to be kept (a session
//! object, an operation in parts, a context-specific login), and forgets it with
//! [`Request::CloseSession`]. Read-only sessions, flags and states are the module's business.

use crate::codec::{List, messages, record};
use crate::{Attribute, Data, IvMode, Kind, Mechanism, ObjectRef, Pin, Place, Role, User};

record! {
    /// First request on every connection. The ticket of the application, if it has one, is in the frame.
    Hello<'a> {
        /// Oldest version that the caller speaks.
        version_min: u16,
        /// Newest version that the caller speaks.
        version_max: u16,
        /// Which program.
        role: Role,
        /// The process's start time as in field 22 of /proc/self/stat. A hint: the agent reads it itself.
        process_start: u64,
        /// The program's name, for display.
        name: &'a str,
    }
}

record! {
    /// Names a token and nothing else.
    OfToken {
        /// The token.
        token: u32,
    }
}

record! {
    /// Names a session of a token.
    OfSession {
        /// The token.
        token: u32,
        /// The session.
        session: u64,
    }
}

record! {
    /// C_Login, C_LoginUser.
    Login<'a> {
        /// The token.
        token: u32,
        /// The session on which it was called; only [`User::ContextSpecific`] is bound to it.
        session: u64,
        /// Whose PIN it is.
        user: User,
        /// User name of C_LoginUser; empty otherwise.
        name: &'a str,
        /// The PIN.
        pin: Pin<'a>,
    }
}

record! {
    /// C_InitToken.
    InitToken<'a> {
        /// The token.
        token: u32,
        /// The security officer's PIN: the one to set, or to prove where the token is initialised.
        so_pin: Pin<'a>,
        /// The token's label, without padding.
        label: &'a str,
    }
}

record! {
    /// C_InitPIN: the security officer sets the user's PIN.
    InitPin<'a> {
        /// The token.
        token: u32,
        /// The new PIN.
        pin: Pin<'a>,
    }
}

record! {
    /// C_SetPIN.
    SetPin<'a> {
        /// The token.
        token: u32,
        /// Whose PIN: the security officer's where that one is logged in, else the user's.
        user: User,
        /// The PIN so far.
        old: Pin<'a>,
        /// The PIN to come.
        new: Pin<'a>,
    }
}

record! {
    /// The objects that match a template, by ascending handle.
    FindObjects<'a> {
        /// The token.
        token: u32,
        /// Only handles above this one; 0 to begin.
        after: u64,
        /// Most handles in the answer; at most [`crate::FIND_HANDLES_MAX`] whatever is asked.
        count_max: u32,
        /// What they must match; empty matches every object.
        template: List<'a, Attribute<'a>>,
    }
}

record! {
    /// Names an object.
    OfObject {
        /// The token.
        token: u32,
        /// The object's handle.
        object: u64,
    }
}

record! {
    /// Chosen attributes of an object, readable ones with their value even where that costs an assembly.
    Attributes<'a> {
        /// The token.
        token: u32,
        /// The object's handle.
        object: u64,
        /// CK_ATTRIBUTE_TYPEs; answered in this order.
        kinds: List<'a, u64>,
    }
}

record! {
    /// C_CreateObject.
    CreateObject<'a> {
        /// The token.
        token: u32,
        /// The session, owner of the object if CKA_TOKEN is false.
        session: u64,
        /// The object.
        template: List<'a, Attribute<'a>>,
    }
}

record! {
    /// C_CopyObject.
    CopyObject<'a> {
        /// The token.
        token: u32,
        /// The session, owner of the copy if CKA_TOKEN is false.
        session: u64,
        /// The object to copy.
        object: u64,
        /// What shall differ.
        template: List<'a, Attribute<'a>>,
    }
}

record! {
    /// C_SetAttributeValue.
    SetAttributes<'a> {
        /// The token.
        token: u32,
        /// The object.
        object: u64,
        /// The new values.
        template: List<'a, Attribute<'a>>,
    }
}

record! {
    /// C_GenerateKey.
    GenerateKey<'a> {
        /// The token.
        token: u32,
        /// The session, owner of the key if CKA_TOKEN is false.
        session: u64,
        /// How.
        mechanism: Mechanism<'a>,
        /// The key.
        template: List<'a, Attribute<'a>>,
    }
}

record! {
    /// C_GenerateKeyPair.
    GenerateKeyPair<'a> {
        /// The token.
        token: u32,
        /// The session, owner of what has CKA_TOKEN false.
        session: u64,
        /// How.
        mechanism: Mechanism<'a>,
        /// The public key.
        public: List<'a, Attribute<'a>>,
        /// The private key.
        private: List<'a, Attribute<'a>>,
    }
}

record! {
    /// C_WrapKey.
    Wrap<'a> {
        /// The token.
        token: u32,
        /// The session.
        session: u64,
        /// How.
        mechanism: Mechanism<'a>,
        /// The key that wraps.
        wrapping: u64,
        /// The key that is wrapped.
        key: u64,
        /// Where the wrapped key goes.
        output: Place,
    }
}

record! {
    /// C_UnwrapKey.
    Unwrap<'a> {
        /// The token.
        token: u32,
        /// The session, owner of the key if CKA_TOKEN is false.
        session: u64,
        /// How.
        mechanism: Mechanism<'a>,
        /// The key that unwraps.
        unwrapping: u64,
        /// The wrapped key.
        wrapped: Data<'a>,
        /// The key to be made.
        template: List<'a, Attribute<'a>>,
    }
}

record! {
    /// C_DeriveKey; C_EncapsulateKey, whose `base` is the public key.
    Derive<'a> {
        /// The token.
        token: u32,
        /// The session, owner of the key if CKA_TOKEN is false.
        session: u64,
        /// How.
        mechanism: Mechanism<'a>,
        /// The key to derive from.
        base: u64,
        /// The key to be made.
        template: List<'a, Attribute<'a>>,
    }
}

record! {
    /// An operation whole, in one frame.
    Operate<'a> {
        /// The token.
        token: u32,
        /// The session (its context-specific login).
        session: u64,
        /// What to do.
        kind: Kind,
        /// With which key.
        object: u64,
        /// How.
        mechanism: Mechanism<'a>,
        /// The data.
        input: Data<'a>,
        /// The signature, for [`Kind::Verify`] and [`Kind::MessageVerify`]; empty otherwise.
        signature: Data<'a>,
        /// Where the output goes; [`Place::NONE`] where there is none.
        output: Place,
    }
}

record! {
    /// The start of an operation in parts. The agent binds it to application and session.
    Begin<'a> {
        /// The token.
        token: u32,
        /// The session; not 0.
        session: u64,
        /// What to do.
        kind: Kind,
        /// With which key; 0 for [`Kind::Digest`].
        object: u64,
        /// How.
        mechanism: Mechanism<'a>,
    }
}

record! {
    /// One part.
    Update<'a> {
        /// From [`crate::response::Begun`].
        operation: u64,
        /// The data.
        input: Data<'a>,
        /// Where the output goes.
        output: Place,
    }
}

record! {
    /// A key as one part of a digest (C_DigestKey).
    UpdateKey {
        /// From [`crate::response::Begun`].
        operation: u64,
        /// The key.
        object: u64,
    }
}

record! {
    /// The end of an operation in parts. The operation is over whatever the answer, CKR_BUFFER_TOO_SMALL excepted.
    Finish<'a> {
        /// From [`crate::response::Begun`].
        operation: u64,
        /// The signature, for [`Kind::Verify`]; empty otherwise.
        signature: Data<'a>,
        /// Where the output goes.
        output: Place,
    }
}

record! {
    /// Names an operation in parts.
    OfOperation {
        /// From [`crate::response::Begun`].
        operation: u64,
    }
}

record! {
    /// A synthetic IV (`mayfly iv`).
    Iv<'a> {
        /// The token; 0 where `key` is a name of another.
        token: u32,
        /// The key.
        key: ObjectRef<'a>,
        /// How.
        mode: IvMode,
        /// Length of the IV, bytes.
        length: u16,
        /// Whether the answer shall explain.
        explain: bool,
        /// Context.
        context: &'a [u8],
        /// Additional authenticated data.
        aad: &'a [u8],
        /// The plaintext that the IV is for.
        plaintext: Data<'a>,
    }
}

record! {
    /// A buffer for data that is too large for a frame.
    LargeBuffer {
        /// Least size, bytes; at most [`crate::shared::SHARED_BYTES_MAX`].
        size: u64,
    }
}

record! {
    /// A management request of the command line. Never holds secrets.
    Manage<'a> {
        /// JSON.
        json: &'a str,
    }
}

messages! {
    /// A request's body by its code.
    Request<'a>,
    /// Codes of requests.
    Op, "request" {
        /// Who calls, and which versions it speaks. Answered by [`crate::Response::Hello`].
        Hello(Hello<'a>) = 1,
        /// All tokens. Answered by [`crate::Response::Tokens`].
        Tokens = 2,
        /// What works on a token. Answered by [`crate::Response::Mechanisms`].
        Mechanisms(OfToken) = 3,
        /// Answered by [`crate::Response::Ticket`].
        Login(Login<'a>) = 8,
        /// Answered by [`crate::Response::Ticket`].
        Logout(OfToken) = 9,
        /// Answered by [`crate::Response::Done`].
        InitToken(InitToken<'a>) = 10,
        /// Answered by [`crate::Response::Done`].
        InitPin(InitPin<'a>) = 11,
        /// Answered by [`crate::Response::Done`].
        SetPin(SetPin<'a>) = 12,
        /// Answered by [`crate::Response::Found`].
        FindObjects(FindObjects<'a>) = 16,
        /// Every attribute that is known without an assembly, for the module's cache.
        /// Answered by [`crate::Response::Attributes`].
        Object(OfObject) = 17,
        /// Answered by [`crate::Response::Attributes`].
        Attributes(Attributes<'a>) = 18,
        /// Answered by [`crate::Response::Created`].
        CreateObject(CreateObject<'a>) = 19,
        /// Answered by [`crate::Response::Created`].
        CopyObject(CopyObject<'a>) = 20,
        /// Answered by [`crate::Response::Done`].
        DestroyObject(OfObject) = 21,
        /// Answered by [`crate::Response::Done`].
        SetAttributes(SetAttributes<'a>) = 22,
        /// C_GetObjectSize. Answered by [`crate::Response::Size`].
        ObjectSize(OfObject) = 23,
        /// The session is over: its objects and operations go. Answered by [`crate::Response::Done`].
        CloseSession(OfSession) = 24,
        /// All of the application's sessions with the token are over; logins too.
        /// Answered by [`crate::Response::Ticket`].
        CloseAllSessions(OfToken) = 25,
        /// Answered by [`crate::Response::Created`].
        GenerateKey(GenerateKey<'a>) = 32,
        /// Answered by [`crate::Response::CreatedPair`].
        GenerateKeyPair(GenerateKeyPair<'a>) = 33,
        /// Answered by [`crate::Response::Output`].
        Wrap(Wrap<'a>) = 34,
        /// Answered by [`crate::Response::Created`].
        Unwrap(Unwrap<'a>) = 35,
        /// Answered by [`crate::Response::Created`].
        Derive(Derive<'a>) = 36,
        /// Answered by [`crate::Response::Encapsulated`].
        Encapsulate(Derive<'a>) = 37,
        /// C_DecapsulateKey: `unwrapping` is the private key, `wrapped` the ciphertext.
        /// Answered by [`crate::Response::Created`].
        Decapsulate(Unwrap<'a>) = 38,
        /// Answered by [`crate::Response::Output`].
        Operate(Operate<'a>) = 48,
        /// Answered by [`crate::Response::Begun`].
        Begin(Begin<'a>) = 49,
        /// Answered by [`crate::Response::Output`].
        Update(Update<'a>) = 50,
        /// Answered by [`crate::Response::Done`].
        UpdateKey(UpdateKey) = 51,
        /// Answered by [`crate::Response::Output`].
        Finish(Finish<'a>) = 52,
        /// Answered by [`crate::Response::Done`], also where there is no such operation.
        Cancel(OfOperation) = 53,
        /// Answered by [`crate::Response::Iv`].
        Iv(Iv<'a>) = 56,
        /// Answered by [`crate::Response::LargeBuffer`] with a file descriptor; replaces the connection's
        /// buffer if it had one.
        LargeBuffer(LargeBuffer) = 64,
        /// Answered by any number of [`crate::Response::Progress`] and one [`crate::Response::Managed`].
        Manage(Manage<'a>) = 80,
    }
}
