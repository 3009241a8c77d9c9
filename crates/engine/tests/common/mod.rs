//! Helpers and tables of the engine's tests.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; helpers say what they expect")]

pub mod tables;

use mayfly_engine::{Error, Key, Mechanism, Stream, decrypt, decrypted_len_max, encrypt, encrypted_len, sign};

pub fn hex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

pub fn hex16(text: &str) -> [u8; 16] {
    hex(text).try_into().unwrap()
}

pub fn encrypted(mechanism: &Mechanism<'_>, key: &Key<'_>, data: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = vec![0xaa; encrypted_len(mechanism, data.len())?];
    let len = encrypt(mechanism, key, data, &mut out)?;
    assert_eq!(len, out.len());
    Ok(out)
}

pub fn decrypted(mechanism: &Mechanism<'_>, key: &Key<'_>, data: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = vec![0xaa; decrypted_len_max(mechanism, data.len())?];
    let done = decrypt(mechanism, key, data, &mut out);
    match done {
        Ok(len) => out.truncate(len),
        Err(why) => {
            assert!(out.iter().all(|byte| *byte == 0), "a failed decryption leaves nothing");
            return Err(why);
        }
    }
    Ok(out)
}

pub fn signed(mechanism: &Mechanism<'_>, key: &Key<'_>, data: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; mayfly_engine::signature_len(mechanism, key)?];
    let len = sign(mechanism, key, data, &mut out)?;
    assert_eq!(len, out.len());
    Ok(out)
}

/// Feeds `data` to `stream`, cut at `cuts` (any order, any size), and collects everything.
pub fn streamed(stream: &mut Stream, data: &[u8], cuts: &[usize]) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    for piece in pieces(data, cuts) {
        let mut out = vec![0xaa; stream.update_len(piece.len())];
        let len = stream.update(piece, &mut out)?;
        assert_eq!(len, out.len(), "update_len is exact");
        all.extend_from_slice(&out);
    }
    let mut out = vec![0xaa; stream.finish_len()];
    let len = stream.finish(&mut out)?;
    assert!(len <= out.len());
    all.extend_from_slice(&out[..len]);
    Ok(all)
}

pub fn pieces<'a>(data: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (data.len() + 1)).collect();
    ends.push(data.len());
    ends.sort_unstable();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends.iter()).map(|(start, end)| &data[start..*end]).collect()
}
