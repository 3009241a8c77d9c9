//! `mayfly-bench LABEL SECONDS`: one thread of AES-GCM encryptions of 1 KiB through the PKCS#11 module, as an application makes them.
//!
//! Prints `name=value` lines. It takes `MAYFLY_MODULE`, `MAYFLY_TOKEN_LABEL` and `MAYFLY_USER_PIN` from the environment. Each operation is
//! C_EncryptInit, a length query and C_Encrypt, with a new IV.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use std::time::{Duration, Instant};

/// Bytes of each plaintext.
const PLAINTEXT_BYTES: usize = 1024;
/// Operations before the clock starts: connections, caches, clock speeds.
const WARM_UP: u32 = 200;
/// The best of so many rounds counts: other programs only ever make it slower.
const ROUNDS: u32 = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [label, seconds] = arguments.as_slice() else { bail!("mayfly-bench LABEL SECONDS") };
    let seconds: f64 = seconds.parse().context("SECONDS is a number")?;
    let module = Pkcs11::new(variable("MAYFLY_MODULE")?)?;
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let session = log_in(&module)?;
    let key = find(&session, label)?;
    let round = Duration::from_secs_f64(seconds / f64::from(ROUNDS));
    run(&session, key, Stop::After(WARM_UP))?;
    let mut rounds =
        (0..ROUNDS).map(|_| run(&session, key, Stop::At(Instant::now() + round))).collect::<Result<Vec<_>>>()?;
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    let best = rounds.last().context("there is a round")?;
    println!("per_second={:.0}\np50_us={:.1}\np99_us={:.1}", best.per_second, best.p50_us, best.p99_us);
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; `. DIR/env` of a network sets it"))
}

fn log_in(module: &Pkcs11) -> Result<Session> {
    let label = variable("MAYFLY_TOKEN_LABEL")?;
    for slot in module.get_slots_with_token()? {
        if module.get_token_info(slot)?.label().trim_end() == label {
            let session = module.open_ro_session(slot)?;
            session.login(UserType::User, Some(&AuthPin::new(variable("MAYFLY_USER_PIN")?.into())))?;
            return Ok(session);
        }
    }
    bail!("no token '{label}'")
}

fn find(session: &Session, label: &str) -> Result<ObjectHandle> {
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.as_bytes().to_vec())];
    let found = session.find_objects(&template)?;
    found.first().copied().with_context(|| format!("no secret key '{label}'"))
}

enum Stop {
    After(u32),
    At(Instant),
}

struct Round {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

fn run(session: &Session, key: ObjectHandle, stop: Stop) -> Result<Round> {
    let plaintext = [0x5a; PLAINTEXT_BYTES];
    let started = Instant::now();
    let mut times: Vec<u32> = Vec::new();
    let mut before = started;
    for count in 0_u32.. {
        let done = match stop {
            Stop::After(operations) => count >= operations,
            Stop::At(end) => before >= end,
        };
        if done {
            break;
        }
        let mut iv = [0; 12];
        iv[..4].copy_from_slice(&count.to_be_bytes());
        let parameters = GcmParams::new(&mut iv, &[], 128.into())?;
        let ciphertext = session.encrypt(&Mechanism::AesGcm(parameters), key, &plaintext)?;
        if ciphertext.len() != PLAINTEXT_BYTES + 16 {
            bail!("ciphertext of {} bytes", ciphertext.len());
        }
        let now = Instant::now();
        times.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
        before = now;
    }
    let per_second = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).map_or(0.0, |ns| f64::from(*ns) / 1000.0);
    Ok(Round { per_second, p50_us: at(0.5), p99_us: at(0.99) })
}
