//! `cargo xtask bench`: measures what the project promises and writes `docs/PERFORMANCE.md`.
//!
//! Everything is measured from outside, on a network of `mayfly dev`, by an application that uses the module as any other would.

use crate::quickstart::network::Network;
use crate::{packages, run, tree};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long each rate is measured.
const RATE_SECONDS: &str = "6";
/// How long the idle network is watched.
const IDLE: Duration = Duration::from_secs(20);
/// How often a network is started; the best time counts.
const STARTS: u32 = 3;

/// A promise and what was found.
struct Figure {
    what: &'static str,
    promise: String,
    measured: String,
    kept: bool,
}

impl Figure {
    fn at_least(what: &'static str, promise: f64, measured: f64, unit: &str) -> Self {
        let text = |value: f64| format!("{} {unit}", thousands(value));
        Self {
            what,
            promise: format!("at least {}", text(promise)),
            measured: text(measured),
            kept: measured >= promise,
        }
    }

    fn below(what: &'static str, promise: f64, measured: f64, unit: &str) -> Self {
        let text = |value: f64| format!("{value:.2} {unit}");
        Self { what, promise: format!("under {}", text(promise)), measured: text(measured), kept: measured < promise }
    }
}

/// Measures everything, prints and writes it; an error if a promise is broken.
pub fn run() -> Result<()> {
    let root = tree::root()?;
    packages::ensure(packages::For::Quickstart)?;
    run::show(Command::new("cargo").current_dir(&root).args(["build", "--release", "--workspace"]))?;
    let programs = tree::built("release")?;
    let folder = tree::Folder::new("bench")?;
    let mut figures = vec![start_time(&folder.0, &programs)?];
    figures.extend(rates(&folder.0, &programs)?);
    figures.extend(idle(&folder.0, &programs)?);
    figures.push(module_size(&folder.0, &programs)?);
    let page = page(&figures)?;
    print!("{page}");
    let path = root.join("docs/PERFORMANCE.md");
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    let broken: Vec<&str> = figures.iter().filter(|f| !f.kept).map(|f| f.what).collect();
    ensure!(broken.is_empty(), "not kept on this machine: {}", broken.join("; "));
    Ok(())
}

fn start_time(folder: &Path, programs: &Path) -> Result<Figure> {
    let mut best = f64::INFINITY;
    for round in 0..STARTS {
        let started = Instant::now();
        let mut network = Network::up(&folder.join(format!("start-{round}")), programs, &[])?;
        best = best.min(started.elapsed().as_secs_f64());
        network.down()?;
    }
    Ok(Figure::below("`mayfly dev up`, 3 agents, until every agent can use keys", 3.0, best, "s"))
}

fn rates(folder: &Path, programs: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (residency, promise, what) in [
        ("per-operation", 2_500.0, "AES-GCM of 1 KiB through the module, one thread, 2-of-3, `per-operation`"),
        ("window:60", 50_000.0, "the same, `window`"),
    ] {
        let dir = folder.join(residency.replace(':', "-"));
        let mut network = Network::up(&dir, programs, &["--residency", residency])?;
        network.mayfly(&["key", "create", "bench", "--type", "aes:256", "--split", "2/3"])?;
        let output =
            run::capture(network.command("mayfly-bench").args(["bench", RATE_SECONDS]), Duration::from_secs(60))?;
        let text = output.done()?.text();
        println!("{residency}: {}", text.trim().replace('\n', ", "));
        figures.push(Figure::at_least(what, promise, value(&text, "per_second")?, "operations/s"));
        network.down()?;
    }
    Ok(figures)
}

fn value(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.and_then(|v| v.parse().ok()).with_context(|| format!("mayfly-bench printed no {name}: {text}"))
}

/// Memory and processor time of an agent with which nothing is done.
fn idle(folder: &Path, programs: &Path) -> Result<Vec<Figure>> {
    let mut network = Network::up(&folder.join("idle"), programs, &[])?;
    network.mayfly(&["key", "create", "bench", "--type", "aes:256", "--split", "2/3"])?;
    std::thread::sleep(Duration::from_secs(2));
    let agents = network.processes()?.into_iter().filter(|(name, _)| name.starts_with("agent-")).map(|(_, pid)| pid);
    let agents: Vec<String> = agents.collect();
    ensure!(!agents.is_empty(), "the network has no agent");
    let ticks = |agents: &[String]| agents.iter().map(|pid| processor_ticks(pid)).sum::<Result<u64>>();
    let per_second: f64 = run::capture(Command::new("getconf").arg("CLK_TCK"), IDLE)?.done()?.text().trim().parse()?;
    let before = ticks(&agents)?;
    std::thread::sleep(IDLE);
    let used = (ticks(&agents)? - before) as f64 / per_second / IDLE.as_secs_f64() / agents.len() as f64;
    let resident = agents.iter().map(|pid| resident_mib(pid)).collect::<Result<Vec<f64>>>()?;
    network.down()?;
    Ok(vec![
        Figure::below("an idle agent's memory (VmRSS)", 40.0, resident.into_iter().fold(0.0, f64::max), "MiB"),
        Figure::below("an idle agent's share of a core, in percent", 0.3, used * 100.0, "%"),
    ])
}

fn processor_ticks(pid: &str) -> Result<u64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let rest = stat.rsplit_once(')').context("an odd /proc/PID/stat")?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Fields 14 and 15 (utime, stime); `rest` starts at field 3.
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok());
    field(14).zip(field(15)).map(|(user, system)| user + system).context("an odd /proc/PID/stat")
}

fn resident_mib(pid: &str) -> Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok()).context("no VmRSS")?;
    Ok(kib / 1024.0)
}

fn module_size(folder: &Path, programs: &Path) -> Result<Figure> {
    // As packages ship it.
    let stripped = folder.join("module.so");
    let strip = Command::new("strip")
        .args(["--strip-unneeded", "-o"])
        .arg(&stripped)
        .arg(programs.join("libmayfly_pkcs11.so"))
        .status();
    if !strip.context("cannot run strip")?.success() {
        bail!("strip failed");
    }
    let bytes = std::fs::metadata(&stripped).context("strip left nothing")?.len();
    Ok(Figure::below("size of `libmayfly_pkcs11.so`, stripped", 1.0, bytes as f64 / 1_048_576.0, "MiB"))
}

fn page(figures: &[Figure]) -> Result<String> {
    let mut text = String::from(
        "# Performance\n\nWhat Mayfly promises and what was measured by `cargo xtask bench`, which writes this page. Rates are the best of three \
         rounds,\nsince other programs only ever make them worse; one operation is C_EncryptInit, a length query and C_Encrypt.\n\n",
    );
    writeln!(text, "Machine: {}.\n", machine()?)?;
    writeln!(text, "| What | Promise | Measured | Kept |\n|---|---|---|---|")?;
    for figure in figures {
        let kept = if figure.kept { "yes" } else { "**no**" };
        writeln!(text, "| {} | {} | {} | {kept} |", figure.what, figure.promise, figure.measured)?;
    }
    text.push_str("\nThe costs of single steps (wiping, signatures, sharing) are measured by the benchmarks of the crates, where they are done.\n");
    Ok(text)
}

fn machine() -> Result<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").context("no /proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("no kernel release")?;
    let kernel: String = kernel.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Ok(format!("{cores} cores of {}, Linux {}", model.unwrap_or("an unnamed processor"), kernel.trim_end_matches('.')))
}

/// `50000.4` as `50,000`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (value, text) in [(0.0, "0"), (999.4, "999"), (2500.0, "2,500"), (1_234_567.0, "1,234,567")] {
            assert_eq!(thousands(value), text);
        }
    }

    #[test]
    fn own_figures_can_be_read() {
        let own = std::process::id().to_string();
        assert!(resident_mib(&own).unwrap() > 0.1);
        processor_ticks(&own).unwrap();
        assert!((value("a=1\nper_second=12\n", "per_second").unwrap() - 12.0).abs() < 1e-9);
        assert!(value("a=1", "per_second").is_err());
    }
}
