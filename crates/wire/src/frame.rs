//! Frames on a stream: one request, one answer, never two at once.
//!
//! Receiving takes memory from the caller: `first` is filled by as few reads as possible (one for small
//! frames) and may be an arena slot where frames can hold secrets; only a frame that is longer goes to
//! `spill`, whose growth is bounded by [`crate::FRAME_BYTES_MAX`]. The header is checked before anything
//! is allocated or read by its word.

use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::net::SendFlags;
use zeroize::Zeroize;

use crate::codec::Reader;
use crate::{
    DecodeError, FrameError, HEADER_BYTES, Request, RequestHeader, Response, ResponseHeader, TICKET_BYTES_MAX, Ticket,
};

/// Memory for `first` that holds any frame with inline data, with room for parameters.
pub const FIRST_BYTES: usize = HEADER_BYTES + TICKET_BYTES_MAX + crate::INLINE_DATA_MAX + 1024;

/// A request as it came, its body not yet decoded.
#[derive(Clone, Copy, Debug)]
pub struct RequestFrame<'b> {
    /// Its header.
    pub header: RequestHeader,
    /// The application's ticket; empty if the frame has none.
    pub ticket: Ticket<'b>,
    body: &'b [u8],
}

impl<'b> RequestFrame<'b> {
    /// Takes apart the bytes of a whole frame.
    pub fn parse(frame: &'b [u8]) -> Result<Self, DecodeError> {
        let (header, rest) = frame.split_first_chunk().ok_or(DecodeError::Truncated("header"))?;
        let header = RequestHeader::decode(header)?;
        let mut rest = Reader::new(rest);
        let mut whole = Reader::new(rest.take(header.length as usize, "frame")?);
        rest.finish()?;
        let ticket = Ticket(whole.take(header.ticket_length.into(), "ticket")?);
        let body = whole.take(whole.left(), "body")?;
        Ok(Self { header, ticket, body })
    }

    /// The request. After an error the connection can go on: the frame was read to its end.
    pub fn request(&self) -> Result<Request<'b>, DecodeError> {
        Request::decode(self.header.op, self.body)
    }
}

/// An answer as it came, its body not yet decoded.
#[derive(Clone, Copy, Debug)]
pub struct ResponseFrame<'b> {
    /// Its header.
    pub header: ResponseHeader,
    body: &'b [u8],
}

impl<'b> ResponseFrame<'b> {
    /// Takes apart the bytes of a whole frame.
    pub fn parse(frame: &'b [u8]) -> Result<Self, DecodeError> {
        let (header, rest) = frame.split_first_chunk().ok_or(DecodeError::Truncated("header"))?;
        let header = ResponseHeader::decode(header)?;
        let mut rest = Reader::new(rest);
        let body = rest.take(header.length as usize, "frame")?;
        rest.finish()?;
        Ok(Self { header, body })
    }

    /// The answer.
    pub fn response(&self) -> Result<Response<'b>, DecodeError> {
        Response::decode(self.header.answer, self.body)
    }
}

/// Reads one request. `None`: the other side ended the connection between two frames.
///
/// After a [`FrameError`] the stream is out of step and must be dropped. Time-outs are the stream's own.
pub fn read_request<'b, S: Read>(
    stream: &mut S,
    first: &'b mut [u8],
    spill: &'b mut Vec<u8>,
) -> Result<Option<RequestFrame<'b>>, FrameError> {
    match read_frame(stream, first, spill, |header| Ok(RequestHeader::decode(header)?.length))? {
        Some(frame) => Ok(Some(RequestFrame::parse(frame)?)),
        None => Ok(None),
    }
}

/// Reads one answer. `None`: the other side ended the connection instead.
pub fn read_response<'b, S: Read>(
    stream: &mut S,
    first: &'b mut [u8],
    spill: &'b mut Vec<u8>,
) -> Result<Option<ResponseFrame<'b>>, FrameError> {
    match read_frame(stream, first, spill, |header| Ok(ResponseHeader::decode(header)?.length))? {
        Some(frame) => Ok(Some(ResponseFrame::parse(frame)?)),
        None => Ok(None),
    }
}

/// Writes a whole frame, in one `send` where the socket takes it, without SIGPIPE: inside an application
/// that signal is not ours to cause.
pub fn write_frame<S: AsFd>(stream: &S, frame: &[u8]) -> io::Result<()> {
    let mut rest = frame;
    while !rest.is_empty() {
        match rustix::net::send(stream, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn read_frame<'b, S: Read>(
    stream: &mut S,
    first: &'b mut [u8],
    spill: &'b mut Vec<u8>,
    body_length: impl Fn(&[u8; HEADER_BYTES]) -> Result<u32, DecodeError>,
) -> Result<Option<&'b [u8]>, FrameError> {
    let mut have = 0;
    while have < HEADER_BYTES {
        match read_some(stream, first.get_mut(have..).unwrap_or_default())? {
            0 if have == 0 => return Ok(None),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => have += count,
        }
    }
    let header = first.first_chunk().ok_or(DecodeError::Truncated("header"))?;
    let total = HEADER_BYTES + body_length(header)? as usize;
    if have > total {
        return Err(DecodeError::Trailing(have - total).into());
    }
    if total <= first.len() {
        let frame = first.get_mut(..total).unwrap_or_default();
        stream.read_exact(frame.get_mut(have..).unwrap_or_default())?;
        return Ok(Some(frame));
    }
    if spill.len() < total {
        spill.zeroize();
        spill.resize(total, 0);
    }
    let frame = spill.get_mut(..total).unwrap_or_default();
    let (start, rest) = frame.split_at_mut(have);
    start.copy_from_slice(first.get(..have).unwrap_or_default());
    stream.read_exact(rest)?;
    Ok(Some(frame))
}

fn read_some<S: Read>(stream: &mut S, memory: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(memory) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BODY_BYTES_MAX, FrameBuf, Refusal, ResponseFlags, request::Manage};

    /// Gives its bytes in pieces of the given sizes, then ends.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, memory: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(memory.len()).min(self.0.len());
            let (now, later) = self.0.split_at(count);
            memory[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    fn manage_frame(json: &str) -> Vec<u8> {
        let mut memory = FrameBuf::default();
        let request = Request::Manage(Manage { json });
        memory.request(7, Some(3), Ticket(b"tt"), &request).unwrap().to_vec()
    }

    #[test]
    fn frames_arrive_in_any_pieces_and_places() {
        let frame = manage_frame(&"x".repeat(5000));
        for piece in [1, 7, 31, 32, 33, 6000] {
            for room in [HEADER_BYTES, 100, frame.len(), 9000] {
                let (mut first, mut spill) = (vec![0; room], Vec::new());
                let got = read_request(&mut Dribble(&frame, piece), &mut first, &mut spill).unwrap().unwrap();
                assert_eq!((got.header.request_id, got.header.cpu, got.ticket), (7, Some(3), Ticket(b"tt")));
                assert!(matches!(got.request(), Ok(Request::Manage(Manage { json })) if json.len() == 5000));
            }
        }
    }

    #[test]
    fn a_frame_of_a_gibibyte_is_refused_by_its_header() {
        let mut frame = manage_frame("{}");
        for length in [1_u32 << 30, u32::MAX, BODY_BYTES_MAX as u32 + 1] {
            frame[..4].copy_from_slice(&length.to_le_bytes());
            let (mut first, mut spill) = ([0; 64], Vec::new());
            let error = read_request(&mut Dribble(&frame, 64), &mut first, &mut spill).unwrap_err();
            assert!(matches!(error, FrameError::Decode(DecodeError::TooLong { what: "frame", .. })), "{error:?}");
            assert_eq!(spill.capacity(), 0);
        }
    }

    #[test]
    fn wrong_starts_are_refused() {
        let good = manage_frame("{}");
        for (at, what) in [(4, "mark"), (6, "version"), (24, "reserved"), (9, "op")] {
            let mut frame = good.clone();
            frame[at] ^= 0x55;
            let (mut first, mut spill) = ([0; 256], Vec::new());
            assert!(read_request(&mut Dribble(&frame, 256), &mut first, &mut spill).is_err(), "{what}");
        }
        let (mut first, mut spill) = ([0; 256], Vec::new());
        assert!(read_response(&mut Dribble(&good, 256), &mut first, &mut spill).is_err(), "a request is no answer");
    }

    #[test]
    fn ends_are_told_apart() {
        let frame = manage_frame("{}");
        let (mut first, mut spill) = ([0; 256], Vec::new());
        assert!(read_request(&mut Dribble(&[], 1), &mut first, &mut spill).unwrap().is_none());
        for end in [1, 31, 32, frame.len() - 1] {
            let error = read_request(&mut Dribble(&frame[..end], 256), &mut first, &mut spill).unwrap_err();
            assert!(matches!(error, FrameError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof), "{end}");
        }
        let two = [frame.clone(), frame].concat();
        let error = read_request(&mut Dribble(&two, 256), &mut first, &mut spill).unwrap_err();
        assert!(matches!(error, FrameError::Decode(DecodeError::Trailing(_))));
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let long = "x".repeat(BODY_BYTES_MAX);
        let mut memory = FrameBuf::default();
        let request = Request::Manage(Manage { json: &long });
        assert!(matches!(memory.request(1, None, Ticket::default(), &request), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn memory_of_a_long_frame_is_given_back() {
        let mut memory = FrameBuf::default();
        for (bytes, kept) in [(10, true), (500_000, false), (10, true)] {
            let json = "x".repeat(bytes);
            memory.request(1, None, Ticket::default(), &Request::Manage(Manage { json: &json })).unwrap();
            memory.wipe();
            assert_eq!(memory.capacity() > 0, kept, "{bytes}");
        }
    }

    #[test]
    fn an_answer_comes_back() {
        let mut memory = FrameBuf::with_capacity(8);
        let refusal = Response::Refused(Refusal::new(0x30, "two of three holders are away"));
        let flags = ResponseFlags::USER_LOGGED_IN;
        let bytes = memory.response(9, 41, flags, &refusal).unwrap();
        let frame = ResponseFrame::parse(bytes).unwrap();
        assert_eq!((frame.header.request_id, frame.header.object_version, frame.header.flags), (9, 41, flags));
        assert_eq!(frame.response().unwrap(), refusal);
    }
}
