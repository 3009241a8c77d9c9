//! An operation's data: in the frame, or in the connection's shared buffer; always copied before it is looked at.

use std::ops::Range;

use mayfly_wire::{Data, INLINE_DATA_MAX, Place, SharedBuffer};
use zeroize::Zeroize;

use super::ck::{CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL, CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY};
use super::fail::{Done, Fail};
use super::quota::{Allowance, Held};
use super::reply::Reply;

/// Working memory that a connection keeps between requests; what grew beyond is given back.
pub const KEPT_BYTES_MAX: usize = 256 << 10;

/// Where one connection's operations find and leave their data.
#[derive(Debug)]
pub struct Io {
    shared: Option<SharedBuffer>,
    /// Parts of it that the last operation wrote.
    written: Vec<Range<u64>>,
    input: Working,
    output: Working,
    allowance: Allowance,
    shared_held: Option<Held>,
}

/// Memory that is zero beyond what the last operation used.
#[derive(Debug)]
struct Working {
    memory: Vec<u8>,
    used: usize,
    allowance: Allowance,
    held: Option<Held>,
}

impl Working {
    fn new(allowance: Allowance) -> Self {
        Self { memory: Vec::new(), used: 0, allowance, held: None }
    }

    fn room(&mut self, bytes: usize) -> Done<&mut [u8]> {
        if self.memory.len() < bytes {
            self.give_back();
            self.held = Some(self.allowance.take(bytes)?);
            let none = |_| Fail::new(CKR_DEVICE_MEMORY, "no memory for the data");
            self.memory.try_reserve_exact(bytes).map_err(none)?;
            self.memory.resize(bytes, 0);
        }
        self.used = self.used.max(bytes);
        Ok(self.memory.get_mut(..bytes).unwrap_or_default())
    }

    fn get(&self, bytes: usize) -> &[u8] {
        self.memory.get(..bytes).unwrap_or_default()
    }

    fn wipe(&mut self) {
        let used = std::mem::take(&mut self.used);
        mayfly_secmem::wipe(self.memory.get_mut(..used).unwrap_or_default());
        if self.memory.len() > KEPT_BYTES_MAX {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        self.memory.zeroize();
        self.memory = Vec::new();
        self.held = None;
    }
}

impl Io {
    /// Without a shared buffer, with what the user may take of memory.
    pub fn new(allowance: Allowance) -> Self {
        Self {
            shared: None,
            written: Vec::new(),
            input: Working::new(allowance.clone()),
            output: Working::new(allowance.clone()),
            allowance,
            shared_held: None,
        }
    }

    /// The shared buffer, if the application asked for one.
    pub fn shared(&self) -> Option<&SharedBuffer> {
        self.shared.as_ref()
    }

    /// Puts a new shared buffer of so many bytes in the place of the one that there was.
    ///
    /// # Errors
    /// CKR_DEVICE_MEMORY; then there is none.
    pub fn share(&mut self, bytes: u64, make: impl FnOnce() -> Done<SharedBuffer>) -> Done<()> {
        self.unshare();
        self.shared_held = Some(self.allowance.take(usize::try_from(bytes).unwrap_or(usize::MAX))?);
        self.shared = Some(make()?);
        Ok(())
    }

    /// Lets go of the shared buffer, empty: its memory is the agent's, and the application may keep the descriptor for ever.
    fn unshare(&mut self) {
        self.settle(std::iter::empty());
        if let Some(shared) = self.shared.take() {
            let _ = shared.discard(); // where the kernel cannot, the pages go with the last descriptor
        }
        self.shared_held = None;
    }

    /// The bytes of `data`, copied out of the shared buffer if they lie there.
    ///
    /// # Errors
    /// CKR_DATA_LEN_RANGE beyond the limit, CKR_ARGUMENTS_BAD outside the buffer.
    pub fn take<'d>(&'d mut self, data: &Data<'d>) -> Done<(&'d [u8], Output<'d>)> {
        let Self { shared, written, input, output, .. } = self;
        let bytes = match data {
            Data::Inline(bytes) => bytes.0,
            Data::Shared { offset, length } => {
                let buffer = shared.as_ref().filter(|buffer| buffer.contains(*offset, *length)).ok_or_else(outside)?;
                let length = usize::try_from(*length).ok().filter(|length| *length <= mayfly_wire::DATA_BYTES_MAX);
                let length = length.ok_or_else(|| Fail::new(CKR_DATA_LEN_RANGE, "data is longer than 64 MiB"))?;
                let input = input.room(length)?;
                buffer.read(*offset, input).map_err(broken)?;
                input
            }
        };
        Ok((bytes, Output { shared: shared.as_ref(), written, memory: output }))
    }

    /// A small byte string (a signature), copied.
    ///
    /// # Errors
    /// As [`Io::take`]; CKR_DATA_LEN_RANGE above 16 KiB.
    pub fn small(&mut self, data: &Data<'_>) -> Done<Vec<u8>> {
        if data.length() > INLINE_DATA_MAX as u64 {
            return Err(Fail::new(CKR_DATA_LEN_RANGE, "a signature is longer than 16 KiB"));
        }
        Ok(self.take(data)?.0.to_vec())
    }

    /// Wipes what the last operation wrote to the shared buffer: with a new request it has been fetched. Not where the application has put
    /// the new request's own data meanwhile.
    pub fn settle<'r>(&mut self, fresh: impl Iterator<Item = Data<'r>> + Clone) {
        for written in std::mem::take(&mut self.written) {
            let mut rest = vec![written];
            for data in fresh.clone() {
                if let Data::Shared { offset, length } = data {
                    rest = rest
                        .into_iter()
                        .flat_map(|range| without(range, offset..offset.saturating_add(length)))
                        .collect();
                }
            }
            self.wipe_shared(&rest);
        }
    }

    /// Wipes the data of a request in the shared buffer, but for what its output has overwritten; before it is answered, and whatever the
    /// answer.
    pub fn consumed<'r>(&mut self, data: impl Iterator<Item = Data<'r>>) {
        for data in data {
            let Data::Shared { offset, length } = data else { continue };
            let whole = offset..offset.saturating_add(length);
            let rest = self.written.iter().fold(vec![whole], |rest, output| {
                rest.into_iter().flat_map(|range| without(range, output.clone())).collect()
            });
            self.wipe_shared(&rest);
        }
    }

    /// Wipes working memory; after the answer was sent.
    pub fn wipe(&mut self) {
        self.input.wipe();
        self.output.wipe();
    }

    fn wipe_shared(&self, ranges: &[Range<u64>]) {
        let Some(shared) = &self.shared else { return };
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            // A memory file takes writes inside its size; outside of it nothing was read.
            let _ = shared.wipe(range.start, range.end - range.start);
        }
    }

    /// The first bytes of the last operation's output.
    pub fn output(&self) -> &[u8] {
        &self.output.memory
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.unshare();
        self.wipe();
    }
}

/// What is left of a range without another one.
fn without(range: Range<u64>, hole: Range<u64>) -> [Range<u64>; 2] {
    if hole.is_empty() {
        return [range.clone(), range.end..range.end];
    }
    let before = range.start..range.end.min(hole.start).max(range.start);
    let after = range.start.max(hole.end).min(range.end)..range.end;
    [before, after]
}

/// Where an operation's output goes.
#[derive(Debug)]
pub struct Output<'d> {
    shared: Option<&'d SharedBuffer>,
    written: &'d mut Vec<Range<u64>>,
    memory: &'d mut Working,
}

impl Output<'_> {
    /// Memory for at most so many bytes of output.
    ///
    /// # Errors
    /// CKR_DEVICE_MEMORY.
    pub fn room(&mut self, bytes: usize) -> Done<&mut [u8]> {
        self.memory.room(bytes)
    }

    /// Puts the first `length` bytes of [`Output::room`] where the caller wants them.
    ///
    /// # Errors
    /// CKR_BUFFER_TOO_SMALL if they are more than he takes, CKR_ARGUMENTS_BAD outside the shared buffer.
    pub fn deliver(&mut self, length: usize, place: &Place) -> Done<Reply> {
        check_room(length, place)?;
        let Place::Shared { offset, .. } = place else { return Ok(Reply::Output(length)) };
        let bytes = self.memory.get(length);
        let buffer = self.shared.filter(|buffer| buffer.contains(*offset, length as u64)).ok_or_else(outside)?;
        buffer.write(*offset, bytes).map_err(broken)?;
        self.written.push(*offset..*offset + length as u64);
        Ok(Reply::SharedOutput { offset: *offset, length: length as u64 })
    }
}

/// Refuses an output that is longer than the caller takes, before anything is done.
///
/// # Errors
/// CKR_BUFFER_TOO_SMALL.
pub fn check_room(length: usize, place: &Place) -> Done<()> {
    if length as u64 <= place.max() {
        Ok(())
    } else {
        Err(Fail::new(CKR_BUFFER_TOO_SMALL, format!("the output needs {length} bytes")))
    }
}

fn outside() -> Fail {
    Fail::new(CKR_ARGUMENTS_BAD, "the data lies outside the shared buffer")
}

fn broken(error: std::io::Error) -> Fail {
    Fail::ruled(CKR_DEVICE_ERROR, "shared-buffer", format!("the shared buffer failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn without_buffer() -> Io {
        Io::new(crate::app::quota::Pot::new("memory", 1 << 20, 1 << 20).of(1000))
    }

    fn with_buffer() -> Io {
        let mut io = without_buffer();
        io.share(327_680, || Ok(SharedBuffer::create(100).unwrap())).unwrap();
        io
    }

    #[test]
    fn memory_is_counted_and_given_back() {
        let pot = crate::app::quota::Pot::new("memory", 1 << 20, 1 << 20);
        let mut io = Io::new(pot.of(1000));
        io.share(600 << 10, || Ok(SharedBuffer::create(600 << 10).unwrap())).unwrap();
        assert_eq!(io.input.room(500 << 10).unwrap_err().code, CKR_DEVICE_MEMORY);
        io.input.room(300 << 10).unwrap();
        assert!(io.share(900 << 10, || unreachable!()).is_err(), "a larger one does not fit");
        assert!(io.shared().is_none());
        io.wipe();
        io.share(1 << 20, || Ok(SharedBuffer::create(1 << 20).unwrap())).unwrap();
        drop(io);
        pot.of(1000).take(1 << 20).unwrap();
    }

    #[test]
    fn a_buffer_that_is_let_go_of_is_empty() {
        let io = with_buffer();
        let kept = io.shared().unwrap().as_fd().try_clone_to_owned().unwrap();
        let kept = SharedBuffer::accept(kept, io.shared().unwrap().size()).unwrap();
        kept.write(1000, b"plaintext").unwrap();
        drop(io);
        let mut bytes = [1; 9];
        kept.read(1000, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 9]);
    }

    #[test]
    fn data_outside_the_buffer_is_refused() {
        let mut io = with_buffer();
        let size = io.shared.as_ref().unwrap().size();
        for (offset, length, code) in [
            (0, size, None),
            (1, size, Some(CKR_ARGUMENTS_BAD)),
            (u64::MAX, 1, Some(CKR_ARGUMENTS_BAD)),
            (0, u64::MAX, Some(CKR_ARGUMENTS_BAD)),
        ] {
            let taken = io.take(&Data::Shared { offset, length }).map(|_| ()).map_err(|fail| fail.code);
            assert_eq!(taken.err(), code, "{offset} {length}");
        }
        let none = without_buffer().take(&Data::Shared { offset: 0, length: 1 }).map(|_| ()).unwrap_err();
        assert_eq!(none.code, CKR_ARGUMENTS_BAD, "no buffer");
    }

    #[test]
    fn output_goes_where_it_is_wanted() {
        let mut io = with_buffer();
        let (_, mut output) = io.take(&Data::empty()).unwrap();
        output.room(5).unwrap().copy_from_slice(b"hello");
        assert!(matches!(output.deliver(5, &Place::Inline { max: 5 }), Ok(Reply::Output(5))));
        assert_eq!(output.deliver(5, &Place::Inline { max: 4 }).unwrap_err().code, CKR_BUFFER_TOO_SMALL);
        assert!(output.deliver(5, &Place::Shared { offset: 7, max: 5 }).is_ok());
        assert!(output.deliver(5, &Place::Shared { offset: u64::MAX, max: 5 }).is_err());
        let mut back = [0; 5];
        io.shared.as_ref().unwrap().read(7, &mut back).unwrap();
        assert_eq!(&back, b"hello");
        io.settle([Data::Shared { offset: 9, length: 2 }].into_iter());
        io.shared.as_ref().unwrap().read(7, &mut back).unwrap();
        assert_eq!(&back, b"\0\0ll\0");
    }

    #[test]
    fn input_is_wiped_before_the_answer_and_output_after_it() {
        let mut io = with_buffer();
        let read = |io: &Io| {
            let mut bytes = [0; 8];
            io.shared.as_ref().unwrap().read(0, &mut bytes).unwrap();
            bytes
        };
        io.shared.as_ref().unwrap().write(0, b"plaintxt").unwrap();
        let data = Data::Shared { offset: 0, length: 8 };
        let (input, mut output) = io.take(&data).unwrap();
        assert_eq!(input, b"plaintxt");
        output.room(3).unwrap().copy_from_slice(b"out");
        output.deliver(3, &Place::Shared { offset: 2, max: 3 }).unwrap();
        let outside = Data::Shared { offset: u64::MAX, length: 3 };
        io.consumed([data, outside, Data::inline(b"x")].into_iter());
        assert_eq!(&read(&io), b"\0\0out\0\0\0");
        io.shared.as_ref().unwrap().write(0, b"new!").unwrap();
        io.settle([Data::Shared { offset: 0, length: 4 }, Data::inline(b"x")].into_iter());
        assert_eq!(&read(&io), b"new!\0\0\0\0", "what the application put there for the next request stays");
        io.settle(std::iter::empty());
        assert_eq!(&read(&io), b"new!\0\0\0\0", "each output is wiped once");
    }

    #[test]
    fn holes_in_ranges() {
        for (range, hole, left) in [
            (0..10, 3..5, [0..3, 5..10]),
            (0..10, 0..5, [0..0, 5..10]),
            (0..10, 5..20, [0..5, 10..10]),
            (5..10, 0..20, [5..5, 10..10]),
            (5..10, 0..3, [5..5, 5..10]),
            (5..10, 12..13, [5..10, 10..10]),
            (5..10, 7..7, [5..10, 10..10]),
        ] {
            assert_eq!(without(range.clone(), hole.clone()), left, "{range:?} without {hole:?}");
        }
    }

    #[test]
    fn inline_output_has_the_frames_limit() {
        assert!(check_room(INLINE_DATA_MAX, &Place::Inline { max: u32::MAX }).is_ok());
        assert!(check_room(INLINE_DATA_MAX + 1, &Place::Inline { max: u32::MAX }).is_err());
    }
}
