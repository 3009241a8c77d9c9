//! Stands on the bus between a plugin and its TPM: records every byte, counts commands, kills or waits between any two.

use super::{Swtpm, control_of};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What is done to one command.
pub enum Act {
    /// Passed on.
    Pass,
    /// Never reaches the TPM; the connection breaks.
    Drop,
    /// Reaches the TPM, the answer is lost.
    LoseAnswer,
    /// The answer is changed on its way: offset from its end, mask.
    Alter(usize, u8),
    /// Never reaches the TPM; this is answered in its place.
    Forge(Vec<u8>),
    /// The last byte of the command is changed on its way.
    Garble,
    /// The answer is written anew on its way.
    Edit(fn(&mut [u8])),
}

/// An answer of a response code and nothing else.
pub fn refusal(code: u32) -> Vec<u8> {
    [&[0x80, 0x01, 0, 0, 0, 10][..], &code.to_be_bytes()].concat()
}

/// Decides on command number `n` (from 0) of code `cc`; may do whatever it likes, such as killing the plugin.
pub type Judge = dyn FnMut(usize, u32) -> Act + Send;

pub struct Proxy {
    pub socket: PathBuf,
    pub shared: Arc<Shared>,
}

pub struct Shared {
    pub count: AtomicUsize,
    pub traffic: Mutex<Vec<u8>>,
    pub codes: Mutex<Vec<u32>>,
    judge: Mutex<Option<Box<Judge>>>,
    /// Held while a command is on its way.
    busy: Mutex<()>,
    stop: AtomicBool,
}

impl Shared {
    /// Starts counting and recording anew.
    pub fn restart(&self) {
        self.count.store(0, Ordering::SeqCst);
        self.traffic.lock().unwrap().clear();
        self.codes.lock().unwrap().clear();
    }

    pub fn judge(&self, judge: impl FnMut(usize, u32) -> Act + Send + 'static) {
        *self.judge.lock().unwrap() = Some(Box::new(judge));
    }

    pub fn pass_all(&self) {
        *self.judge.lock().unwrap() = None;
    }

    /// Lets go of a judge that waits for `flag` to be false, and passes all from then on.
    pub fn pass_all_after(&self, flag: &AtomicBool) {
        flag.store(false, Ordering::SeqCst);
        self.pass_all();
    }

    /// Returns when the command that was judged last has run its course: its plugin may be gone long before.
    pub fn wait_idle(&self) {
        drop(self.busy.lock().unwrap());
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Proxy {
    pub fn start(tpm: &Swtpm) -> Proxy {
        let socket = tpm.dir.path().join("bus");
        let shared = Arc::new(Shared {
            count: AtomicUsize::new(0),
            traffic: Mutex::default(),
            codes: Mutex::default(),
            judge: Mutex::default(),
            busy: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let data = UnixListener::bind(&socket).unwrap();
        let control = UnixListener::bind(control_of(&socket)).unwrap();
        let target = tpm.socket();
        let for_data = shared.clone();
        std::thread::spawn(move || {
            for client in data.incoming() {
                let Ok(client) = client else { return };
                if for_data.stop.load(Ordering::SeqCst) {
                    return;
                }
                // libtss2 opens a connection for each command, so one after the other is enough
                let _ = serve(client, &target, &for_data);
            }
        });
        let target = control_of(&tpm.socket());
        let for_control = shared.clone();
        std::thread::spawn(move || {
            for client in control.incoming() {
                let Ok(client) = client else { return };
                if for_control.stop.load(Ordering::SeqCst) {
                    return;
                }
                let target = target.clone();
                std::thread::spawn(move || copy_both(client, UnixStream::connect(target).unwrap()));
            }
        });
        Proxy { socket, shared }
    }

    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket.display())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for socket in [self.socket.clone(), control_of(&self.socket)] {
            let _ = UnixStream::connect(socket);
        }
    }
}

fn serve(mut client: UnixStream, target: &PathBuf, shared: &Shared) -> std::io::Result<()> {
    while let Some(mut command) = read_frame(&mut client)? {
        let _busy = shared.busy.lock().unwrap();
        let number = shared.count.fetch_add(1, Ordering::SeqCst);
        let code = u32::from_be_bytes(command[6..10].try_into().unwrap());
        shared.codes.lock().unwrap().push(code);
        shared.traffic.lock().unwrap().extend_from_slice(&command);
        let act = match &mut *shared.judge.lock().unwrap() {
            Some(judge) => judge(number, code),
            None => Act::Pass,
        };
        match &act {
            Act::Drop => return Ok(()),
            Act::Forge(answer) => {
                // and no more: who waits for the rest of it sees the end
                return client.write_all(answer);
            }
            Act::Garble => {
                if let Some(last) = command.last_mut() {
                    *last ^= 1;
                }
            }
            _ => {}
        }
        let mut tpm = UnixStream::connect(target)?;
        tpm.write_all(&command)?;
        let mut answer = read_frame(&mut tpm)?.unwrap_or_default();
        shared.traffic.lock().unwrap().extend_from_slice(&answer);
        match act {
            Act::LoseAnswer => return Ok(()),
            Act::Alter(from_end, mask) => {
                // never the head: a shorter answer passes
                if let Some(at) = answer.len().checked_sub(from_end).filter(|at| *at >= 10) {
                    answer[at] ^= mask;
                }
            }
            Act::Edit(edit) => edit(&mut answer),
            Act::Pass | Act::Garble | Act::Drop | Act::Forge(_) => {}
        }
        client.write_all(&answer)?;
    }
    Ok(())
}

/// A command or an answer: tag, length, code, rest.
fn read_frame(stream: &mut UnixStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut frame = vec![0; 10];
    match stream.read_exact(&mut frame) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_be_bytes(frame[2..6].try_into().unwrap()) as usize;
    frame.resize(length, 0);
    stream.read_exact(&mut frame[10..])?;
    Ok(Some(frame))
}

fn copy_both(mut one: UnixStream, mut other: UnixStream) {
    let (mut one_back, mut other_back) = (one.try_clone().unwrap(), other.try_clone().unwrap());
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut other_back, &mut one_back);
    });
    let _ = std::io::copy(&mut one, &mut other);
    let _ = other.shutdown(std::net::Shutdown::Both);
    let _ = back.join();
}
