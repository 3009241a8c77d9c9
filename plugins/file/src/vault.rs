//! Generations and identity by the rules of the plugin interface, on the files of `record`.
//!
//! | File | Is |
//! |---|---|
//! | `vault` | salt, cost, check value; made once |
//! | `identity` | the sealed Ed25519 seed; made once |
//! | `generation` | the sealed keys that open |
//! | `staged` | the sealed keys that would open after a commit |
//! | `retired` | second name of the old `generation` during a commit, so that it can be overwritten after it |
//!
//! The rename of `staged` to `generation` is the commit. Whatever crashes when, there is one file `generation`.

use crate::config::Config;
use crate::record::{FILE_BYTES_MAX, GenerationFile, Header, IdentityFile};
use crate::seal::{Master, SALT_BYTES, SEALED_BYTES};
use ed25519_zebra::{SigningKey, VerificationKeyBytes};
use mayfly_plugin_abi::{
    Alg, Generations, GuestError, Health, Identity, SIGNATURE_BYTES, Status, Tier, VAULT_KEY_BYTES, VaultDescription,
    VaultGuest,
};
use mayfly_vault_store::{GENERATION, HEADER, IDENTITY, STAGED, Store, VaultId, random, refusal};
use std::path::Path;
use zeroize::Zeroizing;

const RETIRED: &str = "retired";

/// An open vault.
pub struct FileVault {
    store: Store,
    master: Master,
    vault_id: VaultId,
}

impl VaultGuest for FileVault {
    const NAME: &'static str = "file";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn open(config: &str, data_dir: &Path) -> Result<FileVault, GuestError> {
        let config = Config::parse(config)?;
        let passphrase = config.passphrase()?;
        let store = Store::open(data_dir, FILE_BYTES_MAX)?;
        let (header, master) = match store.read(HEADER)? {
            Some(bytes) => unlock(&store, &bytes, &passphrase)?,
            None => create(&store, &config, &passphrase)?,
        };
        let vault = FileVault { store, master, vault_id: header.vault_id };
        vault.store.wipe_temporary(&[HEADER, IDENTITY, GENERATION, STAGED])?;
        vault.finish_commit()?;
        vault.generation_file(GENERATION)?;
        vault.identity_file()?;
        Ok(vault)
    }

    fn describe(&mut self) -> Result<VaultDescription, GuestError> {
        Ok(VaultDescription {
            software_only: true,
            identity_algs: vec![Alg::Ed25519],
            tiers: Tier::ALL.to_vec(),
            hardware: "none: passphrase-sealed files".to_owned(),
            security_note: "software only, for development: a copy of the folder and the passphrase open every \
                            generation of which a copy exists, revoked ones included"
                .to_owned(),
        })
    }

    fn identity_public(&mut self, alg: Option<Alg>, create: bool) -> Result<Identity, GuestError> {
        if alg == Some(Alg::P256) {
            return Err(GuestError::new(Status::Unsupported, "identity keys are Ed25519 here"));
        }
        let identity = match self.identity_file()? {
            Some(identity) => identity,
            None if create => self.make_identity()?,
            None => return Err(refusal::no_identity()),
        };
        Ok(Identity { alg: Alg::Ed25519, public: identity.public.to_vec() })
    }

    fn identity_sign(&mut self, message: &[u8], signature: &mut [u8; SIGNATURE_BYTES]) -> Result<(), GuestError> {
        let identity = self.identity_file()?.ok_or_else(refusal::no_identity)?;
        let mut seed = Zeroizing::new([0u8; 32]);
        self.open_sealed(IDENTITY, &identity.aad(), &identity.seed, &mut seed)?;
        let key = Zeroizing::new(SigningKey::from(*seed));
        *signature = key.sign(message).to_bytes();
        Ok(())
    }

    fn generation(&mut self) -> Result<Generations, GuestError> {
        let current = self.current()?;
        let staged = self.generation_file(STAGED)?.map(|file| file.generation);
        // a staged file of another generation than the next one is left from a folder put together by hand
        Ok(Generations { current, staged: staged.filter(|staged| Some(*staged) == current.checked_add(1)) })
    }

    fn stage(&mut self, next: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        let current = self.current()?;
        refusal::check_next(current, next)?;
        let mut file = match self.generation_file(STAGED)? {
            Some(file) if file.generation == next => file,
            _ => GenerationFile { vault_id: self.vault_id, generation: next, keys: Vec::new() },
        };
        random(key)?;
        let sealed = self.master.seal(&GenerationFile::aad(&self.vault_id, next, tier), key)?;
        file.put(tier, sealed);
        self.store.write(STAGED, &file.encode())
    }

    fn open_key(&mut self, generation: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        let file = self.generation_file(GENERATION)?;
        let Some(file) = file.filter(|file| file.generation == generation) else {
            return Err(refusal::does_not_open(generation, self.current()?));
        };
        let sealed = file.key(tier).ok_or_else(|| refusal::no_key(tier, generation))?;
        self.open_sealed(GENERATION, &GenerationFile::aad(&self.vault_id, generation, tier), sealed, key)
    }

    fn commit(&mut self, next: u64) -> Result<(), GuestError> {
        self.finish_commit()?;
        let current = self.current()?;
        if next == current && next > 0 {
            return Ok(());
        }
        let staged = self.generation_file(STAGED)?;
        let staged = staged.filter(|file| file.generation == next && Some(next) == current.checked_add(1));
        let staged = staged.ok_or_else(|| refusal::not_staged(next, current))?;
        // a damaged staged file must not become the only one that is left
        let mut key = Zeroizing::new([0u8; VAULT_KEY_BYTES]);
        for (tier, sealed) in &staged.keys {
            self.open_sealed(STAGED, &GenerationFile::aad(&self.vault_id, next, *tier), sealed, &mut key)?;
        }
        if current > 0 {
            self.store.link(GENERATION, RETIRED)?;
        }
        self.store.rename(STAGED, GENERATION)?;
        self.finish_commit()
    }

    fn discard_staged(&mut self) -> Result<(), GuestError> {
        self.store.wipe_temporary(&[STAGED])?;
        self.store.wipe(STAGED)
    }

    fn random(&mut self, out: &mut [u8]) -> Result<(), GuestError> {
        random(out)
    }

    fn health(&mut self) -> Result<Health, GuestError> {
        Ok(self.store.health())
    }
}

impl FileVault {
    /// Forgets the generation that a commit has replaced; also undoes the first half of a commit that did not happen.
    fn finish_commit(&self) -> Result<(), GuestError> {
        let is_undone = self.store.is_same_file(GENERATION, RETIRED)?;
        if is_undone { self.store.unlink(RETIRED) } else { self.store.wipe(RETIRED) }
    }

    fn current(&self) -> Result<u64, GuestError> {
        Ok(self.generation_file(GENERATION)?.map_or(0, |file| file.generation))
    }

    fn generation_file(&self, name: &str) -> Result<Option<GenerationFile>, GuestError> {
        let Some(bytes) = self.store.read(name)? else { return Ok(None) };
        let file = GenerationFile::decode(&bytes).map_err(|error| self.store.damaged(name, &error))?;
        self.store.check_vault(name, &file.vault_id, &self.vault_id)?;
        Ok(Some(file))
    }

    fn identity_file(&self) -> Result<Option<IdentityFile>, GuestError> {
        let Some(bytes) = self.store.read(IDENTITY)? else { return Ok(None) };
        let file = IdentityFile::decode(&bytes).map_err(|error| self.store.damaged(IDENTITY, &error))?;
        self.store.check_vault(IDENTITY, &file.vault_id, &self.vault_id)?;
        Ok(Some(file))
    }

    fn make_identity(&self) -> Result<IdentityFile, GuestError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        random(&mut seed[..])?;
        let key = Zeroizing::new(SigningKey::from(*seed));
        let public = <[u8; 32]>::from(VerificationKeyBytes::from(&*key));
        let mut file = IdentityFile { vault_id: self.vault_id, public, seed: [0; SEALED_BYTES] };
        file.seed = self.master.seal(&file.aad(), &seed)?;
        self.store.write(IDENTITY, &file.encode())?;
        Ok(file)
    }

    fn open_sealed(
        &self,
        name: &str,
        aad: &[u8],
        sealed: &[u8; SEALED_BYTES],
        secret: &mut [u8; 32],
    ) -> Result<(), GuestError> {
        self.master
            .open(aad, sealed, secret)
            .map_err(|_| self.store.damaged(name, &"its sealed part was changed".into()))
    }
}

/// Opens an existing folder.
fn unlock(store: &Store, bytes: &[u8], passphrase: &[u8]) -> Result<(Header, Master), GuestError> {
    let header = Header::decode(bytes).map_err(|error| store.damaged(HEADER, &error))?;
    let master = derive(passphrase, &header)?;
    let mut zero = [0u8; 32];
    master.open(&header.aad(), &header.check, &mut zero).map_err(|_| {
        GuestError::new(Status::Auth, format!("wrong passphrase for {}", store.path_of(HEADER).display()))
    })?;
    Ok((header, master))
}

/// Makes the header of a new folder.
fn create(store: &Store, config: &Config, passphrase: &[u8]) -> Result<(Header, Master), GuestError> {
    store.check_empty(&[GENERATION, IDENTITY])?;
    let mut header =
        Header { vault_id: [0; 16], cost: config.cost()?, salt: [0; SALT_BYTES], check: [0; SEALED_BYTES] };
    random(&mut header.vault_id)?;
    random(&mut header.salt)?;
    let master = derive(passphrase, &header)?;
    header.check = master.seal(&header.aad(), &[0; 32])?;
    store.write(HEADER, &header.encode())?;
    Ok((header, master))
}

fn derive(passphrase: &[u8], header: &Header) -> Result<Master, GuestError> {
    Master::derive(passphrase, &header.salt, header.cost)
        .map_err(|error| GuestError::new(Status::Io, format!("passphrase: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_vault_store::faults::When;
    use std::os::unix::fs::PermissionsExt;

    const PASSPHRASE: &str = "correct horse battery staple";

    /// A folder with a passphrase beside it.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Folder {
            let folder = Folder(tempfile::tempdir().unwrap());
            folder.set_passphrase(PASSPHRASE);
            std::fs::create_dir(folder.data()).unwrap();
            folder.mode(0o700);
            folder
        }

        fn data(&self) -> std::path::PathBuf {
            self.0.path().join("data")
        }

        fn mode(&self, mode: u32) {
            std::fs::set_permissions(self.data(), std::fs::Permissions::from_mode(mode)).unwrap();
        }

        fn set_passphrase(&self, text: &str) {
            let path = self.0.path().join("passphrase");
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }

        fn try_open(&self) -> Result<FileVault, GuestError> {
            let config = format!("passphrase_file = '{}'", self.0.path().join("passphrase").display());
            FileVault::open(&config, &self.data())
        }

        fn open(&self) -> FileVault {
            self.try_open().unwrap()
        }

        fn error(&self) -> GuestError {
            self.try_open().err().expect("this must not open")
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = std::fs::read_dir(self.data())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn key(vault: &mut FileVault, generation: u64) -> Result<[u8; 32], Status> {
        let mut key = [0; 32];
        vault.open_key(generation, Tier::Boot, &mut key).map(|()| key).map_err(|error| error.status)
    }

    fn stage(vault: &mut FileVault, next: u64) -> [u8; 32] {
        let mut key = [0; 32];
        vault.stage(next, Tier::Boot, &mut key).unwrap();
        key
    }

    /// The state after any crash: one generation, old or new, and nothing lying about once it was opened again.
    fn check_after_crash(folder: &Folder, what: &str, old: (u64, [u8; 32]), new: (u64, [u8; 32])) -> bool {
        let mut vault = folder.open();
        let found = vault.generation().unwrap();
        let committed = found.current == new.0;
        let (opens, dead) = if committed { (new, old) } else { (old, new) };
        assert_eq!(found.current, opens.0, "{what}");
        if opens.0 > 0 {
            assert_eq!(key(&mut vault, opens.0), Ok(opens.1), "{what}");
        }
        assert_eq!(key(&mut vault, dead.0), Err(Status::NoGeneration), "{what}");
        let names = folder.names();
        assert!(!names.iter().any(|name| name.ends_with(".tmp") || name == RETIRED), "{what}: {names:?}");
        committed
    }

    /// Every change of the folder is lost, or done but reported failed; everything after it does not happen.
    #[test]
    fn a_crash_at_any_step_of_a_commit_leaves_exactly_one_generation() {
        for when in [When::Before, When::After] {
            let mut outcomes = Vec::new();
            for step in 0.. {
                let folder = Folder::new();
                let mut vault = folder.open();
                let old = stage(&mut vault, 1);
                vault.commit(1).unwrap();
                let new = stage(&mut vault, 2);
                vault.store.faults.crash_at(step, when);
                let answer = vault.commit(2);
                let whole = vault.store.faults.tried() <= step;
                drop(vault);
                let what = format!("step {step} {when:?}");
                assert_eq!(answer.is_ok(), whole, "{what}");
                let committed = check_after_crash(&folder, &what, (1, old), (2, new));
                outcomes.push(committed);
                let mut vault = folder.open();
                if !committed {
                    assert_eq!(vault.generation().unwrap().staged, Some(2), "{what}: still staged");
                }
                vault.commit(2).unwrap();
                assert_eq!(key(&mut vault, 2), Ok(new), "{what}");
                if whole {
                    break;
                }
            }
            assert!(outcomes.len() > 5, "the commit has steps: {outcomes:?}");
            assert!(!outcomes[0] && outcomes[outcomes.len() - 2], "{outcomes:?}");
            let turns = outcomes.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert_eq!(turns, 1, "one commit point: {outcomes:?}");
        }
    }

    #[test]
    fn a_crash_at_any_step_of_a_stage_changes_nothing_that_opens() {
        for when in [When::Before, When::After] {
            for step in 0.. {
                let folder = Folder::new();
                let mut vault = folder.open();
                let old = stage(&mut vault, 1);
                vault.commit(1).unwrap();
                vault.store.faults.crash_at(step, when);
                let answer = vault.stage(2, Tier::Boot, &mut [0; 32]);
                let whole = vault.store.faults.tried() <= step;
                drop(vault);
                let what = format!("step {step} {when:?}");
                assert_eq!(answer.is_ok(), whole, "{what}");
                assert!(!check_after_crash(&folder, &what, (1, old), (2, [0; 32])), "{what}");
                let mut vault = folder.open();
                let again = stage(&mut vault, 2);
                vault.commit(2).unwrap();
                assert_eq!(key(&mut vault, 2), Ok(again), "{what}");
                if whole {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_crash_at_any_step_of_making_the_identity_leaves_one_or_none() {
        for when in [When::Before, When::After] {
            for step in 0..8 {
                let folder = Folder::new();
                let mut vault = folder.open();
                vault.store.faults.crash_at(step, when);
                let made = vault.identity_public(None, true);
                drop(vault);
                let mut vault = folder.open();
                let kept = vault.identity_public(None, false).ok();
                if let Ok(made) = made {
                    assert_eq!(kept, Some(made), "step {step} {when:?}: an acknowledged identity is gone");
                }
                let now = vault.identity_public(None, true).unwrap();
                assert!(kept.is_none_or(|kept| kept == now), "step {step} {when:?}");
            }
        }
    }

    #[test]
    fn the_old_generation_is_overwritten() {
        let folder = Folder::new();
        let mut vault = folder.open();
        stage(&mut vault, 1);
        vault.commit(1).unwrap();
        let witness = folder.0.path().join("witness");
        std::fs::hard_link(folder.data().join(GENERATION), &witness).unwrap();
        assert!(GenerationFile::decode(&std::fs::read(&witness).unwrap()).is_ok());
        stage(&mut vault, 2);
        vault.commit(2).unwrap();
        let left = std::fs::read(&witness).unwrap();
        assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0), "the old file's bytes are zeros");
    }

    #[test]
    fn a_wrong_passphrase_is_told_apart_from_damage() {
        let folder = Folder::new();
        let mut vault = folder.open();
        stage(&mut vault, 1);
        vault.commit(1).unwrap();
        vault.identity_public(None, true).unwrap();
        stage(&mut vault, 2);
        drop(vault);
        folder.set_passphrase("another passphrase");
        let error = folder.error();
        assert_eq!(error.status, Status::Auth);
        assert!(error.message.starts_with("wrong passphrase for "), "{error}");
        folder.set_passphrase(PASSPHRASE);
        folder.open();
        for name in [HEADER, IDENTITY, GENERATION] {
            let path = folder.data().join(name);
            let good = std::fs::read(&path).unwrap();
            for position in [0, 9, 20, good.len() / 2, good.len() - 1] {
                let mut bad = good.clone();
                bad[position] ^= 4;
                std::fs::write(&path, &bad).unwrap();
                let error = folder.error();
                assert_eq!(error.status, Status::Corrupt, "{name} {position}: {error}");
                assert!(error.message.contains(name) && error.message.contains("put the whole folder back"), "{error}");
            }
            for bytes in [&good[..good.len() - 1], &[]] {
                std::fs::write(&path, bytes).unwrap();
                assert_eq!(folder.error().status, Status::Corrupt, "{name} cut to {}", bytes.len());
            }
            std::fs::write(&path, &good).unwrap();
        }
        folder.open();
    }

    /// A bit flipped by somebody who corrects the checksum as well.
    #[test]
    fn a_changed_file_with_a_right_checksum_does_not_open() {
        let folder = Folder::new();
        let mut vault = folder.open();
        stage(&mut vault, 1);
        vault.commit(1).unwrap();
        vault.identity_public(None, true).unwrap();
        let path = folder.data().join(GENERATION);
        let mut file = GenerationFile::decode(&std::fs::read(&path).unwrap()).unwrap();
        let honest = file.clone();

        file.generation = 2;
        std::fs::write(&path, file.encode()).unwrap();
        assert_eq!(key(&mut vault, 2), Err(Status::Corrupt), "another number on the same keys");

        let mut swapped = honest.clone();
        let sealed = *honest.key(Tier::Boot).unwrap();
        swapped.put(Tier::Window, sealed);
        std::fs::write(&path, swapped.encode()).unwrap();
        assert_eq!(key(&mut vault, 1).map(|_| ()), Ok(()));
        let error = vault.open_key(1, Tier::Window, &mut [0; 32]).unwrap_err();
        assert_eq!(error.status, Status::Corrupt, "one tier's key under another");

        let mut foreign = honest.clone();
        foreign.vault_id[0] ^= 1;
        std::fs::write(&path, foreign.encode()).unwrap();
        assert!(vault.generation().unwrap_err().message.contains("belongs to another vault"));
        std::fs::write(&path, honest.encode()).unwrap();

        let path = folder.data().join(IDENTITY);
        let mut identity = IdentityFile::decode(&std::fs::read(&path).unwrap()).unwrap();
        identity.public[0] ^= 1;
        std::fs::write(&path, identity.encode()).unwrap();
        assert_eq!(vault.identity_sign(b"x", &mut [0; 64]).unwrap_err().status, Status::Corrupt);
    }

    #[test]
    fn a_damaged_staged_file_is_not_committed() {
        let folder = Folder::new();
        let mut vault = folder.open();
        let old = stage(&mut vault, 1);
        vault.commit(1).unwrap();
        stage(&mut vault, 2);
        let path = folder.data().join(STAGED);
        let mut file = GenerationFile::decode(&std::fs::read(&path).unwrap()).unwrap();
        file.keys[0].1[20] ^= 1;
        std::fs::write(&path, file.encode()).unwrap();
        assert_eq!(vault.commit(2).unwrap_err().status, Status::Corrupt);
        assert_eq!(key(&mut vault, 1), Ok(old), "the old one still opens");
        vault.discard_staged().unwrap();
        stage(&mut vault, 2);
        vault.commit(2).unwrap();
    }

    #[test]
    fn a_lost_header_does_not_start_a_new_vault() {
        let folder = Folder::new();
        let mut vault = folder.open();
        vault.identity_public(None, true).unwrap();
        drop(vault);
        std::fs::remove_file(folder.data().join(HEADER)).unwrap();
        assert!(folder.error().message.contains("it is missing beside the other files"));
    }

    #[test]
    fn folders_open_to_others_and_second_users_are_refused() {
        let folder = Folder::new();
        folder.mode(0o750);
        assert_eq!(folder.error().status, Status::Config);
        folder.mode(0o700);
        let first = folder.open();
        assert_eq!(folder.error().status, Status::Busy);
        drop(first);
        folder.open();
    }

    /// A folder of the first version with what was in it, so that the format does not change unnoticed. Opened once by
    /// other code as well (Argon2id, AES-256-GCM-SIV and Ed25519 of Python's cryptography 48).
    #[test]
    fn a_folder_of_version_1_opens() {
        let folder = Folder::new();
        for (name, hexadecimal) in V1_FILES {
            std::fs::write(folder.data().join(name), unhex(hexadecimal)).unwrap();
        }
        let mut vault = folder.open();
        assert_eq!(vault.generation().unwrap(), Generations { current: 1, staged: None });
        assert_eq!(key(&mut vault, 1).unwrap().to_vec(), unhex(V1_BOOT_KEY));
        let mut signature = [0; 64];
        vault.identity_sign(b"message", &mut signature).unwrap();
        assert_eq!(signature.to_vec(), unhex(V1_SIGNATURE), "Ed25519 is deterministic");
    }

    const V1_FILES: [(&str, &str); 3] = [
        (
            HEADER,
            "4d4159464c5956460001e578351dfa1914b79d7021108445618800004c0000000002a96a05c5805699bf6f0781774940\
             243b66f902c1620afd69a43b9145c5aafaf927012bb30038945f47631e4e182b68590ae7d2984dd4d0f2c11056afe20b\
             5253d330d02a2c04a125526dd30e76762c0477c3cce9d3a993625670e46a1fced5b88afb03842b4ab3a1a333de97",
        ),
        (
            IDENTITY,
            "4d4159464c5956490001e578351dfa1914b79d702110844561880001f006638d05df0235b24d1c132eb00a13041305b2\
             be1458107d3cd837822df2515f735a956fd444bb950eae17f45670fbeea6f965c32cf57bbf76eb43750790a656cbcd68\
             6b94b59a22b8a8e921c4c21f0e911aab00a2e6f9a92164506e2ac4de8e8ff68de05552c46d09de7776b5f9cbaedf1c21\
             696d1ff9a3a8b32f",
        ),
        (
            GENERATION,
            "4d4159464c5956470001e578351dfa1914b79d7021108445618800000000000000010000000100000000cfbef53b60a5\
             7a5dbdde5ecd1c915fed86fe7bdea0980c1739aa4598d6094911f6ff730170ebe0c528f40996f97e2c1af4411d835291\
             7fe1ba476deb1636a7e3b72a220ef4a52f113db7b312497e88a2c042d383d640bf272c48a20b",
        ),
    ];
    const V1_BOOT_KEY: &str = "93f0c73f209bffe7d683d4c50be9299a977501b175ca845d3beefe1238e86276";
    const V1_SIGNATURE: &str = "004a9b920775c92b95d60e3d0318fdac53163ee60bd1e4b2ea950b24a81a43e509a0f07f0121220a35502929c77cfe1d\
         38fe108aa9a71f35fffca64fa0e14e05";

    fn unhex(text: &str) -> Vec<u8> {
        let text: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        text.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    #[ignore = "prints a new vector; run by hand when the format gets a new version"]
    fn print_a_vector() {
        let folder = Folder::new();
        let mut vault = folder.open();
        let boot = stage(&mut vault, 1);
        vault.commit(1).unwrap();
        vault.identity_public(None, true).unwrap();
        let mut signature = [0; 64];
        vault.identity_sign(b"message", &mut signature).unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for name in [HEADER, IDENTITY, GENERATION] {
            println!("{name} {}", hex(&std::fs::read(folder.data().join(name)).unwrap()));
        }
        println!("key {}\nsignature {}", hex(&boot), hex(&signature));
    }
}
