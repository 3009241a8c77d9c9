//! `cargo xtask quickstart`: from a fresh clone to a file encrypted by a key that exists nowhere.
//!
//! Each step is done with the built programs and with unmodified `pkcs11-tool` and `openssl`, is verified, and says in one plain
//! line what happened and where the key was. The command succeeds only if every step was verified; it leaves no process behind.

use crate::{packages, run, tree};
use anyhow::{Context, Result, bail, ensure};
use network::Network;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub mod network;

/// Longest time for one command of the story.
const STEP_SECONDS_MAX: u64 = 30;
/// A refusal for want of holders comes within this time; starting `pkcs11-tool` is part of it.
const REFUSAL_MAX: Duration = Duration::from_secs(2);
/// An AES block in hexadecimal: the IV for `pkcs11-tool`'s CBC.
const CBC_IV: &str = "000102030405060708090a0b0c0d0e0f";
const AES: &str = "document-key";
const EC: &str = "signing-key";
/// CKA_ID of each: pkcs11-tool chooses by it where there are several keys.
const AES_ID: &str = "a0";
const EC_ID: &str = "e0";

/// Runs the whole story.
pub fn run() -> Result<()> {
    let root = tree::root()?;
    packages::ensure(packages::For::Quickstart)?;
    println!("building: 5 to 15 minutes the first time");
    run::show(Command::new("cargo").current_dir(&root).args(["build", "--release", "--workspace"]))?;
    let folder = tree::Folder::new("quickstart")?;
    let mut story = Story::begin(&folder.0, &tree::built("release")?, &root.join("README.md"))?;
    story.tell()?;
    story.network.down().context("the network could not be ended")?;
    println!(
        "\nDone: every step was verified, and no process is left. Your own network: `mayfly dev up --dir DIR`, then see README.md."
    );
    Ok(())
}

struct Story {
    network: Network,
    folder: PathBuf,
    /// A real file: this project's README.
    document: PathBuf,
    number: u32,
}

impl Story {
    fn begin(folder: &Path, programs: &Path, document: &Path) -> Result<Self> {
        let started = Instant::now();
        let network = Network::up(&folder.join("network"), programs, &["--vaults", "tpm,pkcs11,file"])?;
        let mut story = Self { network, folder: folder.to_owned(), document: document.to_owned(), number: 0 };
        let seconds = started.elapsed().as_secs_f32();
        story.see_vaults(seconds)?;
        Ok(story)
    }

    fn tell(&mut self) -> Result<()> {
        self.make_keys()?;
        self.use_keys("all three agents alive")?;
        self.make_iv()?;
        self.network.mayfly(&["dev", "kill", "--dir", &self.network.dir(), "agent-3"])?;
        self.say("agent-3 was killed (SIGKILL): its shards cannot be had any more; two of three are left, and two are enough.");
        self.use_keys("agent-3 dead")?;
        self.network.mayfly(&["dev", "kill", "--dir", &self.network.dir(), "agent-2"])?;
        self.say("agent-2 was killed as well: one shard of each key is left, and one shard says nothing about a key.");
        self.see_refusal()?;
        self.network.mayfly(&["dev", "start", "--dir", &self.network.dir(), "agent-2"])?;
        self.say("agent-2 was started again and opened its vault: two shards can be had.");
        self.use_keys("agent-2 back, agent-3 still dead")?;
        self.verify_ledger()
    }

    fn say(&mut self, text: &str) {
        self.number += 1;
        println!("{:2}. {text}", self.number);
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Each agent's vault is of the kind that was dealt to it.
    fn see_vaults(&mut self, seconds: f32) -> Result<()> {
        let devices = self.network.mayfly(&["device", "list"])?;
        for (agent, vault) in [("agent-1", "tpm"), ("agent-2", "pkcs11"), ("agent-3", "file")] {
            let line = devices.lines().find(|line| line.split_whitespace().next() == Some(agent));
            let has = line.is_some_and(|line| line.split_whitespace().any(|word| word == vault));
            ensure!(has, "the vault of {agent} is not of kind {vault}:\n{devices}");
        }
        self.say(&format!(
            "A ledger and three agents run on this machine ({seconds:.1} s). Each agent seals what it keeps: agent-1 in a TPM 2.0, agent-2 in a \
             PKCS#11 token, agent-3 in a file under a passphrase. TPM and token are software here (swtpm, SoftHSM); no key exists yet."
        ));
        Ok(())
    }

    fn make_keys(&mut self) -> Result<()> {
        for (name, kind, id) in [(AES, "aes:256", AES_ID), (EC, "ec:p256", EC_ID)] {
            let shown = self
                .network
                .mayfly(&["key", "create", name, "--type", kind, "--split", "2/3", "--id", id, "--json"])?;
            for part in ["\"t\":2", "\"n\":3"] {
                let compact: String = shown.chars().filter(|c| !c.is_whitespace()).collect();
                ensure!(compact.contains(part), "key {name} was not split 2-of-3: {shown}");
            }
        }
        let listed = self.network.pkcs11_tool(&["--list-objects"])?.done()?.text();
        ensure!(listed.contains(AES) && listed.contains(EC), "pkcs11-tool does not see both keys:\n{listed}");
        self.say(&format!(
            "'{AES}' (AES-256) and '{EC}' (EC P-256) were made, split 2-of-3: each agent keeps one shard, sealed; \
             the whole keys were wiped when they had been dealt."
        ));
        Ok(())
    }

    /// Encrypts, decrypts, signs and verifies the document; everything is checked.
    fn use_keys(&mut self, when: &str) -> Result<()> {
        self.encrypt_and_decrypt(when)?;
        self.sign_with_pkcs11_tool(when)?;
        self.sign_with_openssl(when)
    }

    fn encrypt_and_decrypt(&mut self, when: &str) -> Result<()> {
        let (document, sealed, opened) =
            (self.document.display().to_string(), self.file("sealed"), self.file("opened"));
        let cbc = |verb, from: &str, to: &str| {
            let words = [verb, "--id", AES_ID, "-m", "AES-CBC-PAD", "--iv", CBC_IV, "-i", from, "-o", to];
            self.network.pkcs11_tool(&words)?.done()
        };
        cbc("--encrypt", &document, &sealed)?;
        let (plain, cipher) = (read(&document)?, read(&sealed)?);
        ensure!(
            cipher.len() == (plain.len() / 16 + 1) * 16,
            "ciphertext of {} bytes has {}",
            plain.len(),
            cipher.len()
        );
        ensure!(
            !plain.chunks_exact(16).zip(cipher.chunks_exact(16)).any(|(p, c)| p == c),
            "ciphertext shows plaintext"
        );
        cbc("--decrypt", &sealed, &opened)?;
        ensure!(read(&opened)? == plain, "the decrypted file differs from the original");
        self.say(&format!(
            "pkcs11-tool encrypted and decrypted {} bytes, equal byte for byte ({when}): for each operation two shards met in \
             agent-1's locked memory, and the key was wiped after it.",
            plain.len()
        ));
        Ok(())
    }

    fn sign_with_pkcs11_tool(&mut self, when: &str) -> Result<()> {
        let (document, signature, public) =
            (self.document.display().to_string(), self.file("tool.sig"), self.file("public.der"));
        let words = ["--sign", "--id", EC_ID, "-m", "ECDSA-SHA256", "-f", "openssl", "-i", &document, "-o", &signature];
        self.network.pkcs11_tool(&words)?.done()?;
        self.network.pkcs11_tool(&["--read-object", "--type", "pubkey", "--id", EC_ID, "-o", &public])?.done()?;
        self.openssl_verifies(&signature, &document)?;
        self.say(&format!("pkcs11-tool signed the file, and openssl alone verified it ({when}): the private key is in no file and no process."));
        Ok(())
    }

    fn sign_with_openssl(&mut self, when: &str) -> Result<()> {
        let (document, signature) = (self.document.display().to_string(), self.file("openssl.sig"));
        let key = self.network.uri(EC);
        let words = [
            "dgst", "-engine", "pkcs11", "-keyform", "engine", "-sha256", "-sign", &key, "-out", &signature, &document,
        ];
        self.network.tool("openssl", &words)?.done()?;
        self.openssl_verifies(&signature, &document)?;
        self.say(&format!("openssl signed the same file through its pkcs11 engine, verified ({when})."));
        Ok(())
    }

    /// The signature is good for the document, and for nothing else.
    fn openssl_verifies(&self, signature: &str, document: &str) -> Result<()> {
        let (der, pem, other) = (self.file("public.der"), self.file("public.pem"), self.file("other"));
        let pkey = ["pkey", "-pubin", "-inform", "DER", "-in", &der, "-out", &pem];
        run::capture(Command::new("openssl").args(pkey), Duration::from_secs(STEP_SECONDS_MAX))?.done()?;
        let verify = |file: &str| {
            let words = ["dgst", "-sha256", "-verify", &pem, "-signature", signature, file];
            run::capture(Command::new("openssl").args(words), Duration::from_secs(STEP_SECONDS_MAX))
        };
        verify(document)?.done()?;
        let mut changed = read(document)?;
        if let Some(byte) = changed.first_mut() {
            *byte ^= 1;
        }
        std::fs::write(&other, changed).with_context(|| format!("cannot write {other}"))?;
        ensure!(!verify(&other)?.status.success(), "openssl accepted the signature for another file");
        Ok(())
    }

    fn make_iv(&mut self) -> Result<()> {
        let iv = |arguments: &[&str]| {
            let words = [&["iv", "--key", AES], arguments].concat();
            self.network.mayfly_reading(&self.document, &words)
        };
        let first = iv(&["--explain"])?.all_text();
        for word in ["ledger", "reconstruct", "derive"] {
            ensure!(first.to_lowercase().contains(word), "mayfly iv --explain does not tell of '{word}':\n{first}");
        }
        let (one, two) = (iv(&[])?.text(), iv(&[])?.text());
        ensure!(
            one.trim().len() == 24 && one.trim().chars().all(|c| c.is_ascii_hexdigit()),
            "not an IV of 12 bytes: {one}"
        );
        ensure!(one != two, "two hedged IVs are equal");
        self.say(
            "An IV for the file was made from the key, fresh randomness and the file itself; these were the steps:",
        );
        first.lines().for_each(|line| println!("      {line}"));
        Ok(())
    }

    fn see_refusal(&mut self) -> Result<()> {
        let document = self.document.display().to_string();
        let out = self.file("refused");
        let words = ["--encrypt", "--id", AES_ID, "-m", "AES-CBC-PAD", "--iv", CBC_IV, "-i", &document, "-o", &out];
        let refused = self.network.pkcs11_tool(&words)?;
        if refused.status.success() {
            bail!("the key worked with one shard of three");
        }
        let text = refused.all_text();
        ensure!(text.contains("CKR_DEVICE_ERROR"), "the refusal is not CKR_DEVICE_ERROR:\n{text}");
        ensure!(refused.took <= REFUSAL_MAX, "the refusal took {:.1} s", refused.took.as_secs_f32());
        let why = self.network.mayfly(&["why"])?;
        ensure!(why.contains("agent-2") && why.contains("agent-3"), "`mayfly why` does not name both:\n{why}");
        self.say(&format!(
            "pkcs11-tool was refused with CKR_DEVICE_ERROR after {:.1} s; `mayfly why` says:",
            refused.took.as_secs_f32()
        ));
        why.lines().for_each(|line| println!("      {line}"));
        Ok(())
    }

    fn verify_ledger(&mut self) -> Result<()> {
        let verified = self.network.mayfly(&["ledger", "verify"])?;
        let line = verified.lines().next().unwrap_or_default().to_owned();
        self.say(&format!("The ledger was checked from its first record on: {line}"));
        Ok(())
    }
}

fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {path}"))
}
