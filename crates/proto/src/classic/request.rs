//! Where a command without length and end begins and ends, and what is no command.

use super::limits::{FOREIGN_BYTES_SHOWN, READ_BYTES, REQUEST_BYTES_MAX, REST_TIMEOUT};
use crate::time::Instant;

/// What the beginning of another protocol looks like: a browser, or a client at the wrong port.
/// Nothing of it may be run (`C-5.4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// An HTTP request, of any version that begins with text.
    Http,
    /// A TLS handshake.
    Tls,
    /// An SSH identification.
    Ssh,
    /// Binary: no command holds a NUL. TURN, RDP and most other protocols begin with one.
    Binary,
}

impl Foreign {
    /// What these bytes begin like, unless they may be a command.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"\x16\x03") {
            Some(Self::Tls)
        } else if bytes.starts_with(b"SSH-") {
            Some(Self::Ssh)
        } else if bytes.contains(&0) {
            Some(Self::Binary)
        } else if is_http(bytes) {
            Some(Self::Http)
        } else {
            None
        }
    }

    /// What to call it, in a log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "an HTTP request",
            Self::Tls => "a TLS handshake",
            Self::Ssh => "an SSH identification",
            Self::Binary => "a binary message",
        }
    }
}

/// The methods that a page can make a browser send to another origin, and the others of RFC 9110.
const HTTP_METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// A known method and the beginning of a target is enough: the rest may not have arrived, and a
/// path can hold a whole command. Any other method is one if target and version follow (RFC 9112,
/// section 3): a page whose name was rebound to this address may choose it.
fn is_http(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let words: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
    match words[..] {
        [method, _, version] if !method.is_empty() && is_http_version(version) => true,
        [method, target, ..] if HTTP_METHODS.contains(&method) => {
            target.starts_with(b"/")
                || target.starts_with(b"*")
                || target.starts_with(b"http:")
                || target.starts_with(b"https:")
                || (method == b"CONNECT" && target.contains(&b':'))
        }
        _ => false,
    }
}

/// `HTTP/1.1`, and `HTTP/3` as some write it.
fn is_http_version(word: &[u8]) -> bool {
    let number = word.strip_prefix(b"HTTP/").unwrap_or_default();
    matches!(number, [major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
        || matches!(number, [major] if major.is_ascii_digit())
}

/// Why something is not taken as a command; the connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is longer than [`REQUEST_BYTES_MAX`].
    #[error("a command of more than {REQUEST_BYTES_MAX} bytes")]
    TooLong,
    /// It begins like another protocol.
    #[error("{} instead of a command: {}", .foreign.name(), String::from_utf8_lossy(.begins))]
    Foreign {
        /// Which.
        foreign: Foreign,
        /// The first bytes of it, at most [`FOREIGN_BYTES_SHOWN`], as they came: escape them.
        begins: Vec<u8>,
    },
}

/// The server's half: takes what reads give and says what is one command.
///
/// The protocol sends a command without length and without end (`C-3.1`), so when it is complete is a
/// question of time (`C-3.2`, `C-3.3`): what has arrived is one command once nothing more is there,
/// and when that is [`READ_BYTES`] or more, only after a silence of [`REST_TIMEOUT`].
#[derive(Debug, Default)]
pub struct RequestReader {
    buffered: Vec<u8>,
    /// Whether what is buffered is a whole command.
    complete: bool,
    /// When what is buffered will be taken as whole. `Some` only if it may still go on.
    deadline: Option<Instant>,
}

impl RequestReader {
    /// A reader at the beginning of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what a read has given.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // More than the limit needs not be kept: it is refused as it is.
        let room = REQUEST_BYTES_MAX.saturating_add(1).saturating_sub(self.buffered.len());
        self.buffered.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        self.complete = false;
        self.deadline = None;
    }

    /// Takes that a read found nothing: all that has arrived was given.
    pub fn handle_drained(&mut self, now: Instant) {
        if self.buffered.len() >= READ_BYTES {
            self.deadline.get_or_insert_with(|| now.after(REST_TIMEOUT));
        } else {
            self.complete = true;
        }
    }

    /// Takes the end of the bytes: what is there is all there will be.
    pub fn handle_eof(&mut self) {
        self.complete = true;
    }

    /// Lets time pass. To be called when the time of [`RequestReader::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.complete = true;
        }
    }

    /// When [`RequestReader::handle_timeout`] is to be called next, if nothing arrives before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.complete)
    }

    /// Whether so much has arrived that reading on would only fill memory: what is there is longer
    /// than any command.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.buffered.len() > REQUEST_BYTES_MAX
    }

    /// The next command, never empty.
    ///
    /// # Errors
    /// What arrived is no command; see [`RequestError`].
    pub fn poll_request(&mut self) -> Option<Result<Vec<u8>, RequestError>> {
        if self.is_full() {
            self.forget();
            return Some(Err(RequestError::TooLong));
        }
        if !self.complete || self.buffered.is_empty() {
            return None;
        }
        let request = self.forget();
        Some(match Foreign::of(&request) {
            Some(foreign) => {
                let begins = request.get(..FOREIGN_BYTES_SHOWN).unwrap_or(&request).to_vec();
                Err(RequestError::Foreign { foreign, begins })
            }
            None => Ok(request),
        })
    }

    /// Gives what is buffered and begins anew.
    fn forget(&mut self) -> Vec<u8> {
        self.complete = false;
        self.deadline = None;
        std::mem::take(&mut self.buffered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Instant = Instant::from_micros(7);

    fn later(now: Instant) -> Instant {
        now.after(REST_TIMEOUT)
    }

    /// What arrives at once, and then nothing.
    fn read_once(bytes: &[u8]) -> Option<Result<Vec<u8>, RequestError>> {
        let mut reader = RequestReader::new();
        reader.handle_input(bytes);
        assert_eq!(reader.poll_request().is_some(), bytes.len() > REQUEST_BYTES_MAX);
        reader.handle_drained(AT);
        reader.poll_request()
    }

    #[test]
    fn what_has_arrived_is_one_command() {
        // C-3.1, C-3.2: for every split in two reads of what is there.
        let command = "printf '%s' 'a b'; cd /tmp".as_bytes();
        for at in 0..=command.len() {
            let mut reader = RequestReader::new();
            let (first, rest) = command.split_at(at);
            reader.handle_input(first);
            reader.handle_input(rest);
            reader.handle_drained(AT);
            assert_eq!(reader.poll_timeout(), None);
            assert_eq!(reader.poll_request(), Some(Ok(command.to_vec())));
            assert_eq!(reader.poll_request(), None);
        }
    }

    #[test]
    fn nothing_is_no_command() {
        assert_eq!(read_once(b""), None);
        let mut reader = RequestReader::new();
        reader.handle_eof();
        assert_eq!(reader.poll_request(), None);
    }

    #[test]
    fn one_that_fills_a_read_is_waited_for() {
        // C-3.3, on both sides of the length.
        assert_eq!(read_once(&[b'a'; READ_BYTES - 1]), Some(Ok(vec![b'a'; READ_BYTES - 1])));
        assert_eq!(read_once(&[b'a'; READ_BYTES]), None);

        let mut reader = RequestReader::new();
        reader.handle_input(&[b'a'; READ_BYTES]);
        reader.handle_drained(AT);
        assert_eq!(reader.poll_timeout(), Some(later(AT)));
        // Asked once more, the time does not begin anew.
        reader.handle_drained(later(AT));
        assert_eq!(reader.poll_timeout(), Some(later(AT)));
        // More has come: now it does.
        reader.handle_input(b"b");
        assert_eq!(reader.poll_timeout(), None);
        reader.handle_timeout(later(AT));
        assert_eq!(reader.poll_request(), None);
        let then = later(AT);
        reader.handle_drained(then);
        reader.handle_timeout(Instant::from_micros(later(then).as_micros() - 1));
        assert_eq!(reader.poll_request(), None);
        reader.handle_timeout(later(then));
        let mut expected = vec![b'a'; READ_BYTES];
        expected.push(b'b');
        assert_eq!(reader.poll_request(), Some(Ok(expected)));
        assert_eq!(reader.poll_timeout(), None);
    }

    #[test]
    fn the_end_of_the_bytes_is_the_end_of_the_command() {
        let mut reader = RequestReader::new();
        reader.handle_input(&[b'a'; READ_BYTES]);
        reader.handle_drained(AT);
        reader.handle_eof();
        assert_eq!(reader.poll_timeout(), None);
        assert_eq!(reader.poll_request(), Some(Ok(vec![b'a'; READ_BYTES])));
    }

    #[test]
    fn a_command_has_a_limit() {
        // C-3.4, on both sides.
        let whole = |length: usize| {
            let mut reader = RequestReader::new();
            for chunk in vec![b'a'; length].chunks(READ_BYTES) {
                reader.handle_input(chunk);
            }
            assert_eq!(reader.is_full(), length > REQUEST_BYTES_MAX);
            reader.handle_eof();
            reader.poll_request().map(|read| read.map(|command| command.len()))
        };
        assert_eq!(whole(REQUEST_BYTES_MAX), Some(Ok(REQUEST_BYTES_MAX)));
        assert_eq!(whole(REQUEST_BYTES_MAX + 1), Some(Err(RequestError::TooLong)));
        let mut reader = RequestReader::new();
        reader.handle_input(&vec![b'a'; 4 * REQUEST_BYTES_MAX]);
        assert_eq!(reader.buffered.len(), REQUEST_BYTES_MAX + 1);
    }

    #[test]
    fn other_protocols_are_no_commands() {
        // C-5.4.
        let cases: [(&[u8], Foreign); 17] = [
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Foreign::Http),
            (b"POST /;id HTTP/1.0\r\n", Foreign::Http),
            (b"POST /;id", Foreign::Http),
            (b"HEAD http://127.0.0.1/", Foreign::Http),
            (b"OPTIONS * HTTP/1.1\r\n", Foreign::Http),
            (b"CONNECT localhost:8080 HTTP/1.1", Foreign::Http),
            (b"CONNECT localhost:8080", Foreign::Http),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Foreign::Http),
            (b"`id` / HTTP/1.1\r\n", Foreign::Http),
            (b"x /a HTTP/3\n", Foreign::Http),
            (b"GET /a\tb\nid\n", Foreign::Http),
            (b"\x16\x03\x01\x02\x00\x01", Foreign::Tls),
            (b"\x16\x03", Foreign::Tls),
            (b"SSH-2.0-OpenSSH_10.0\r\n", Foreign::Ssh),
            (b"SSH-", Foreign::Ssh),
            (b"\x00\x03\x00\x08\x21\x12\xa4\x42", Foreign::Binary),
            (b"id\0", Foreign::Binary),
        ];
        for (bytes, foreign) in cases {
            let expected = RequestError::Foreign { foreign, begins: bytes.to_vec() };
            assert_eq!(read_once(bytes), Some(Err(expected)), "{bytes:?}");
        }
    }

    #[test]
    fn only_the_beginning_of_what_is_refused_is_kept() {
        for length in [FOREIGN_BYTES_SHOWN, FOREIGN_BYTES_SHOWN + 1, READ_BYTES - 1] {
            let mut request = b"GET /".to_vec();
            request.resize(length, b'x');
            let error = read_once(&request).unwrap().unwrap_err();
            let RequestError::Foreign { begins, .. } = error else { panic!("{error}") };
            assert_eq!(begins, request[..FOREIGN_BYTES_SHOWN]);
        }
    }

    #[test]
    fn commands_that_resemble_other_protocols_are_commands() {
        let commands = [
            "GET",
            "GET example.com",
            "PUT file",
            "POST",
            "CONNECT",
            "HTTP/1.1",
            "echo GET / HTTP/1.1",
            "echo a; curl -d 'HTTP/1.1'",
            "ls /HTTP/",
            "SSH_AUTH_SOCK=x ssh-add -l",
            "\n",
            " ",
            "printf 'GET / HTTP/1.1\\r\\n'",
            "cat <<E\nGET / HTTP/1.1\nE",
        ];
        for command in commands {
            let expected = command.as_bytes().to_vec();
            assert_eq!(read_once(command.as_bytes()), Some(Ok(expected)), "{command}");
        }
    }
}
