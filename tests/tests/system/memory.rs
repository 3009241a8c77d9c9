//! A key that is known to the test is used, and searched for in every process of the network from outside.
//!
//! The search is proved to work by a canary: the label of another key, which agents keep in ordinary memory, must be found.

use mayfly_tests::{Network, id_of};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Regions of `/proc/PID/maps` that can be read: (start, end).
fn regions(pid: u32) -> Vec<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let region = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let readable = rest.starts_with('r') && !line.contains("[vvar") && !line.contains("[vsyscall");
        readable.then_some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    maps.lines().filter_map(region).collect()
}

/// How often each pattern occurs in the process's memory. Pages that cannot be read (secret memory) are passed over.
fn search(pid: u32, patterns: &[(String, Vec<u8>)]) -> Vec<(String, usize)> {
    let memory = File::open(format!("/proc/{pid}/mem"))
        .expect("the search needs the right to read other processes' memory (root)");
    let longest = patterns.iter().map(|(_, p)| p.len()).max().unwrap();
    let mut counts = vec![0; patterns.len()];
    for (start, end) in regions(pid) {
        let mut at = start;
        while at < end {
            let wanted = CHUNK.min((end - at) as usize);
            let mut buffer = vec![0; wanted];
            let Ok(read) = memory.read_at(&mut buffer, at) else {
                at += 4096;
                continue;
            };
            if read == 0 {
                break;
            }
            buffer.truncate(read);
            for ((_, pattern), count) in patterns.iter().zip(&mut counts) {
                *count += find_all(&buffer, pattern);
            }
            // Overlap, so that nothing on a border is missed; a region's last piece has no overlap.
            at += if read == wanted && at + (read as u64) < end {
                (read - longest.min(read - 1)) as u64
            } else {
                read as u64
            };
        }
    }
    patterns.iter().zip(counts).map(|((name, _), count)| (name.clone(), count)).collect()
}

fn find_all(haystack: &[u8], needle: &[u8]) -> usize {
    let (first, rest) = needle.split_first().unwrap();
    let starts = haystack.iter().enumerate().filter(|(_, byte)| *byte == first).map(|(at, _)| at);
    starts.filter(|at| haystack[at + 1..].starts_with(rest)).count()
}

/// The key and the forms that it takes: pieces, backwards, hexadecimal, expanded for AES.
fn forms(name: &str, key: &[u8; 32]) -> Vec<(String, Vec<u8>)> {
    let mut forms = Vec::new();
    let mut add = |form: &str, bytes: &[u8]| forms.push((format!("{name}, {form}"), bytes.to_vec()));
    add("whole", key);
    for (at, piece) in key.chunks(16).enumerate() {
        add(&format!("half {at}"), piece);
    }
    for (at, piece) in key.chunks(8).enumerate() {
        add(&format!("piece {at}"), piece);
    }
    let backwards: Vec<u8> = key.iter().rev().copied().collect();
    backwards.chunks(8).enumerate().for_each(|(at, piece)| add(&format!("backwards {at}"), piece));
    let hex = hex::encode(key);
    add("hexadecimal", &hex.as_bytes()[..32]);
    add("hexadecimal, upper case", &hex.to_uppercase().as_bytes()[..32]);
    for (at, round) in expand(key).chunks(16).enumerate().skip(2) {
        add(&format!("AES round key {at}"), round);
    }
    forms
}

/// AES-256 key expansion (FIPS 197, 5.2).
fn expand(key: &[u8; 32]) -> Vec<u8> {
    let mut words: Vec<[u8; 4]> = key.chunks(4).map(|w| w.try_into().unwrap()).collect();
    let mut constant = 1_u8;
    for i in 8..60 {
        let mut word = words[i - 1];
        if i % 8 == 0 {
            word.rotate_left(1);
            word = word.map(substitute);
            word[0] ^= constant;
            constant = double(constant);
        } else if i % 8 == 4 {
            word = word.map(substitute);
        }
        let before = words[i - 8];
        words.push(std::array::from_fn(|b| word[b] ^ before[b]));
    }
    words.concat()
}

fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b }
}

fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b > 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

/// The S-box: inverse in GF(2^8), then the affine map.
fn substitute(a: u8) -> u8 {
    let inverse = (0..=255).find(|b| multiply(a, *b) == 1).unwrap_or(0);
    (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

#[test]
fn the_expansion_is_that_of_the_standard() {
    // FIPS 197, appendix A.3: the last words of the expanded key.
    let key = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
    let expanded = expand(&key.try_into().unwrap());
    assert_eq!(hex::encode(&expanded[expanded.len() - 4..]), "706c631e");
}

#[test]
fn a_known_key_is_nowhere_in_ordinary_memory() {
    let network = Network::three();
    let (aes, mac): ([u8; 32], [u8; 32]) = (random_key(), random_key());
    network.agent(1).import_aes("known-aes", &aes);
    network.agent(1).import_mac("known-mac", &mac);
    let canary = format!("canary-{}", hex::encode(&random_key()[..12]));
    network.agent(1).make_aes(&canary);
    let document = network.write("document", &[7; 5000]);
    let out = network.file("out").display().to_string();
    for number in [1, 2, 3] {
        for _ in 0..5 {
            let agent = network.agent(number);
            agent.encrypt("known-aes", &document, &out).ok();
            agent
                .pkcs11_tool(&["--sign", "--id", &id_of("known-mac"), "-m", "SHA256-HMAC", "-i", &document, "-o", &out])
                .ok();
        }
    }
    let mut patterns = [forms("AES key", &aes), forms("MAC key", &mac)].concat();
    patterns.push(("canary".into(), canary.as_bytes().to_vec()));
    for number in 1..=3 {
        let name = format!("agent-{number}");
        for pid in session(network.pid(&name)) {
            let found: Vec<_> = search(pid, &patterns).into_iter().filter(|(_, count)| *count > 0).collect();
            let is_agent = pid == network.pid(&name);
            assert!(
                !is_agent || found.iter().any(|(what, _)| what == "canary"),
                "{name}: the search does not find what is there"
            );
            let keys: Vec<_> = found.iter().filter(|(what, _)| what != "canary").collect();
            assert!(keys.is_empty(), "{name}, process {pid}: {keys:?}");
        }
    }
    // Its rest on disk is sealed as well.
    let mut files = vec![network.dir()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.is_file() {
            let content = std::fs::read(&path).unwrap();
            for (what, pattern) in patterns.iter().filter(|(what, _)| what != "canary") {
                assert_eq!(find_all(&content, pattern), 0, "{what} lies in {}", path.display());
            }
        }
    }
}

fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut key).unwrap();
    key
}

/// The process and those of its session: the agent and its plugin hosts.
fn session(leader: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<String> = stat.rsplit_once(')')?.1.split_ascii_whitespace().map(str::to_owned).collect();
        fields.get(3)?.parse::<u32>().ok()
    };
    pids.filter(|pid| of(*pid) == Some(leader)).collect()
}
