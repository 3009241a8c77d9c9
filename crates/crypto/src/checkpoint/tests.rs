use super::*;
use proptest::prelude::*;

/// A checkpoint of the Go checksum database, signed by the key that every Go toolchain carries
/// (`sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8`): a signature that others made. The example of
/// tlog-checkpoint.md is this one with another origin.
const GO_SUMDB: &str = "go.sum database tree\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
    — sum.golang.org Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";
const GO_SUMDB_KEY: &str = "Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";

/// The example of tlog-cosignature.md.
const COSIGNED: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
    — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
    — witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";

fn go_key() -> [u8; 32] {
    let key = BASE64.decode(GO_SUMDB_KEY).unwrap();
    assert_eq!(key[0], SignatureType::Ed25519 as u8);
    key[1..].try_into().unwrap()
}

fn signer(seed: u8) -> (ed25519_zebra::SigningKey, [u8; 32]) {
    let key = ed25519_zebra::SigningKey::from([seed; 32]);
    let public = ed25519_zebra::VerificationKeyBytes::from(&key).into();
    (key, public)
}

/// A note by a gateway and two witnesses.
fn note() -> Note {
    let name = origin(&[0xab; 32]);
    let checkpoint = Checkpoint::new(&name, 7, &[9; 32]).unwrap();
    let mut note = Note::new(checkpoint.clone());
    let (key, public) = signer(1);
    let signature = key.sign(checkpoint.body().as_bytes()).to_bytes();
    note.push(SignatureLine::ed25519(&name, &public, &signature).unwrap()).unwrap();
    for (seed, witness, time) in [(2, "w/2", 1_700_000_000), (3, "w/3", COSIGNATURE_TIME_MAX)] {
        let (key, public) = signer(seed);
        let signature = key.sign(&cosignature_message(time, &name, 7, &[9; 32])).to_bytes();
        note.push(SignatureLine::cosignature_v1(witness, &public, time, &signature).unwrap()).unwrap();
    }
    note
}

#[test]
fn a_checkpoint_of_the_go_checksum_database_verifies() {
    let note = Note::parse(GO_SUMDB.as_bytes()).unwrap();
    assert_eq!(note.encode(), GO_SUMDB);
    assert_eq!((note.checkpoint().origin(), note.checkpoint().size()), ("go.sum database tree", 20_852_163));
    assert_eq!(key_id("sum.golang.org", SignatureType::Ed25519, &go_key()), 0x033d_e0ae);
    assert_eq!(note.verify_log("sum.golang.org", &go_key()), Ok(()));
    assert_eq!(note.verify_log("sum.golang.org", &signer(1).1), Err(NoteError::NotSigned("sum.golang.org".into())));
}

#[test]
fn the_specifications_example_parses() {
    let note = Note::parse(COSIGNED.as_bytes()).unwrap();
    assert_eq!(note.encode(), COSIGNED);
    let witness = &note.lines()[1];
    assert_eq!((witness.name(), witness.key_id()), ("witness.example.com/w1", 0x8d66_cf3f));
    assert_eq!(witness.signature[..8], 1_679_315_147_u64.to_be_bytes());
    let head = note.checkpoint();
    let message = cosignature_message(1_679_315_147, head.origin(), head.size(), head.root());
    let expected = "cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n\
                    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    assert_eq!(message, expected.as_bytes());
}

#[test]
fn gateway_and_witnesses_sign_and_verify() {
    let note = note();
    let name = origin(&[0xab; 32]);
    assert_eq!(name, format!("mayfly/{}", "ab".repeat(32)));
    let note = Note::parse(note.encode().as_bytes()).unwrap();
    assert_eq!(note.verify_log(&name, &signer(1).1), Ok(()));
    assert_eq!(note.verify_cosignature("w/2", &signer(2).1), Ok(1_700_000_000));
    assert_eq!(note.verify_cosignature("w/3", &signer(3).1), Ok(COSIGNATURE_TIME_MAX));
    // A key of one type, name or note does not stand for another.
    assert!(matches!(note.verify_cosignature(&name, &signer(1).1), Err(NoteError::NotSigned(_))));
    assert!(matches!(note.verify_log("w/2", &signer(2).1), Err(NoteError::NotSigned(_))));
    assert!(matches!(note.verify_cosignature("w/3", &signer(2).1), Err(NoteError::NotSigned(_))));
}

#[test]
fn a_changed_text_or_time_voids_the_signatures() {
    let encoded = note().encode();
    let name = origin(&[0xab; 32]);
    for (from, to) in [("\n7\n", "\n8\n"), ("ab\n7", "ac\n7"), ("\nCQkJ", "\nCQkK")] {
        let changed = Note::parse(encoded.replacen(from, to, 1).as_bytes()).unwrap();
        assert_eq!(changed.verify_log(&name, &signer(1).1), Err(NoteError::BadSignature(name.clone())));
        assert_eq!(changed.verify_cosignature("w/2", &signer(2).1), Err(NoteError::BadSignature("w/2".into())));
    }
    let mut later = note();
    later.lines[1].signature[7] ^= 1;
    assert_eq!(later.verify_cosignature("w/2", &signer(2).1), Err(NoteError::BadSignature("w/2".into())));
    later.lines[1].signature[0] = 0x80;
    assert!(matches!(later.verify_cosignature("w/2", &signer(2).1), Err(NoteError::BadTime(_))));
    for length in [1, 7, 8, 71] {
        let mut short = note();
        short.lines[1].signature.truncate(length);
        assert_eq!(short.verify_cosignature("w/2", &signer(2).1), Err(NoteError::BadSignature("w/2".into())));
    }
}

#[test]
fn checkpoints_out_of_form_are_refused() {
    let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
    let cases = [
        String::new(),
        "\n".into(),
        format!("o\n1\n{root}"),
        format!("o\n1\n{root}\n\n"),
        format!("o\n1\n{root}\nextension\n"),
        format!("\n1\n{root}\n"),
        format!("{}\n1\n{root}\n", "o".repeat(NAME_BYTES_MAX + 1)),
        format!("o\r\n1\n{root}\n"),
        format!("o\n\n{root}\n"),
        format!("o\n01\n{root}\n"),
        format!("o\n00\n{root}\n"),
        format!("o\n+1\n{root}\n"),
        format!("o\n-1\n{root}\n"),
        format!("o\n 1\n{root}\n"),
        format!("o\n1 \n{root}\n"),
        format!("o\n0x1\n{root}\n"),
        format!("o\n{}\n{root}\n", TREE_SIZE_MAX + 1),
        format!("o\n99999999999999999999999\n{root}\n"),
        "o\n1\n\n".into(),
        format!("o\n1\n{}\n", root.trim_end_matches('=')),
        format!("o\n1\n{}\n", root.replace("2I=", "2J=")),
        format!("o\n1\n{}\n", root.replace('/', "_")),
        format!("o\n1\n{root} \n"),
        "o\n1\nAAAA\n".into(),
    ];
    for case in cases {
        assert!(matches!(Checkpoint::parse(&case), Err(NoteError::BadCheckpoint(_))), "{case:?}");
    }
    assert!(Checkpoint::parse(&format!("o\n{TREE_SIZE_MAX}\n{root}\n")).is_ok());
    assert!(Checkpoint::parse(&format!("o\n0\n{root}\n")).is_ok());
    assert!(Checkpoint::new("two\nlines", 1, &[0; 32]).is_err());
}

#[test]
fn notes_out_of_form_are_refused() {
    let good = note().encode();
    let (body, lines) = good.split_once("\n\n").unwrap();
    let one = lines.split_inclusive('\n').next().unwrap();
    let cases = [
        (String::new(), "empty"),
        (format!("{body}\n"), "no separator"),
        (format!("{body}\n\n"), "no signatures"),
        (good.trim_end().to_owned(), "no final newline"),
        (format!("{good}\n"), "trailing newline"),
        (good.replace('\u{2014}', "-"), "another dash"),
        (good.replace("— w/2 ", "— w/2  "), "two spaces"),
        (good.replace("— w/2 ", "— w+2 "), "plus in a name"),
        (good.replace("— w/2 ", "—  "), "empty name"),
        (good.replace("— w/2 ", "— w\u{a0}2 "), "Unicode space in a name"),
        (good.replace("— w/2 ", &format!("— {} ", "w".repeat(NAME_BYTES_MAX + 1))), "long name"),
        (good.replacen('7', "7\t", 1), "control character"),
        (format!("{body}\n\n{one}{one}"), "the same key twice"),
        (format!("{body}\n\n— w AAAA\n"), "too short for a key id"),
        (format!("{body}\n\n— w AAAAAA==\n"), "no signature after the key id"),
        (format!("{body}\n\n— w AAAAAAB=\n"), "base64 with loose bits"),
    ];
    for (case, why) in cases {
        assert!(Note::parse(case.as_bytes()).is_err(), "{why}");
    }
    assert!(Note::parse(b"\xff\n\n").is_err());
    let long = vec![b'a'; NOTE_BYTES_MAX + 1];
    assert_eq!(Note::parse(&long), Err(NoteError::TooLong(long.len())));
    let many = (0..=SIGNATURES_MAX).map(|i| format!("— w/{i} AAAAAAA=\n")).collect::<String>();
    assert_eq!(Note::parse(format!("{body}\n\n{many}").as_bytes()), Err(NoteError::TooManySignatures));
}

#[test]
fn unknown_signatures_are_carried_and_ignored() {
    let good = note().encode();
    let with_unknown = format!("{good}— w/2 AAAAAAAA\n— somebody/else AAAAAAAA\n");
    let note = Note::parse(with_unknown.as_bytes()).unwrap();
    assert_eq!(note.encode(), with_unknown);
    assert_eq!(note.verify_cosignature("w/2", &signer(2).1), Ok(1_700_000_000));
}

#[test]
fn times_beyond_the_limit_are_refused() {
    let time = COSIGNATURE_TIME_MAX + 1;
    assert_eq!(SignatureLine::cosignature_v1("w", &[0; 32], time, &[0; 64]), Err(NoteError::BadTime(time)));
}

proptest! {
    #[test]
    fn what_parses_encodes_to_the_same_bytes(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let mut bytes = note().encode().into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(parsed) = Note::parse(&bytes) {
            prop_assert_eq!(parsed.encode().into_bytes(), bytes);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Note::parse(&bytes);
    }
}
