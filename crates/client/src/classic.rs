//! The classic protocol's client: one command at a time, to any server of it (`docs/spec/classic.md`).
//!
//! No login, no encryption, no status: a command goes out as it is and its output comes back behind
//! its length. It blocks, because there is nothing else to do on such a connection meanwhile.

use std::io::{self, Read as _, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use afar_proto::classic::limits::REQUEST_BYTES_MAX;
use afar_proto::classic::{Cut, Piece, ResponseError, ResponseReader};

/// The port of a server of the classic protocol where none is given.
pub const CLASSIC_PORT: u16 = 8080;

/// Most bytes that are read at a time, and so the most of an output that is ever held.
const READ_BYTES: usize = 256 * 1024;

/// Why a command was not answered. Unless it is said otherwise, the connection is of no more use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassicError {
    /// Nobody is there.
    #[error("connect: cannot reach {address}: {source}")]
    Connect {
        /// The address as it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing can't be sent: the server would not notice. The connection goes on.
    #[error("an empty command can't be sent: the protocol has neither length nor end of a command")]
    Empty,
    /// The command is longer than afar's own server takes. The connection goes on.
    #[error("a command of {0} bytes is too long; the limit is {REQUEST_BYTES_MAX}")]
    TooLong(usize),
    /// The command could not be sent.
    #[error("run: the command can't be sent: {0}")]
    Send(#[source] io::Error),
    /// The answer could not be read; the part that was missing is named.
    #[error("run: the connection failed: {source}; {cut}")]
    Receive {
        /// What the system said.
        source: io::Error,
        /// How far it had come.
        cut: Cut,
    },
    /// The server has ended the connection within an answer, or before one.
    #[error("run: {0}; the server has gone, and whether the command was run is not known")]
    Cut(Cut),
    /// What came is no answer.
    #[error("run: {0}")]
    Response(#[from] ResponseError),
    /// More came than the answer said (`C-2.3`); what follows can't be told apart any more.
    #[error("run: the server sent more than its answer states ({0} bytes more)")]
    Excess(usize),
    /// The output could not be written where it was to go.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

/// A connection to a server of the classic protocol.
///
/// ```no_run
/// # fn main() -> Result<(), afar_client::ClassicError> {
/// use afar_client::ClassicConnection;
///
/// let mut server = ClassicConnection::connect("127.0.0.1:8080", std::time::Duration::from_secs(10))?;
/// let mut output = Vec::new();
/// server.run(b"cd /tmp", &mut output)?;
/// server.run(b"pwd", &mut output)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ClassicConnection {
    stream: TcpStream,
    reader: ResponseReader,
    buffer: Vec<u8>,
}

impl ClassicConnection {
    /// Connects to `HOST:PORT`; each of its addresses may take `timeout`.
    ///
    /// # Errors
    /// [`ClassicError::Connect`].
    pub fn connect(address: &str, timeout: Duration) -> Result<Self, ClassicError> {
        let failed = |source| ClassicError::Connect { address: address.to_owned(), source };
        let addresses = address.to_socket_addrs().map_err(failed)?;
        let stream = connect_any(addresses, timeout).map_err(failed)?;
        // What fails here costs speed only.
        let _ = stream.set_nodelay(true);
        Ok(Self { stream, reader: ResponseReader::new(), buffer: vec![0; READ_BYTES] })
    }

    /// Sends a command and writes its output to `sink` as it arrives. Returns the number of bytes.
    ///
    /// # Errors
    /// See [`ClassicError`].
    pub fn run(&mut self, command: &[u8], sink: &mut dyn Write) -> Result<u64, ClassicError> {
        // C-3.5, C-3.4.
        if command.is_empty() {
            return Err(ClassicError::Empty);
        }
        if command.len() > REQUEST_BYTES_MAX {
            return Err(ClassicError::TooLong(command.len()));
        }
        self.stream.write_all(command).map_err(ClassicError::Send)?;
        let mut total = 0;
        loop {
            let count = match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(ClassicError::Cut(self.reader.handle_eof())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(ClassicError::Receive { source, cut: self.reader.handle_eof() });
                }
            };
            let mut input = self.buffer.get(..count).unwrap_or_default();
            while let Some(piece) = self.reader.read(&mut input)? {
                match piece {
                    Piece::Header { data_size } => total = data_size,
                    Piece::Data(data) => sink.write_all(data).map_err(ClassicError::Output)?,
                    Piece::End if input.is_empty() => {
                        sink.flush().map_err(ClassicError::Output)?;
                        return Ok(total);
                    }
                    Piece::End => return Err(ClassicError::Excess(input.len())),
                }
            }
        }
    }
}

fn connect_any(
    addresses: impl Iterator<Item = SocketAddr>,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_proto::classic::response_header;
    use std::net::TcpListener;
    use std::thread;

    /// A server that reads one command and then sends these pieces, each with a write of its own.
    fn serve(pieces: Vec<Vec<u8>>) -> (ClassicConnection, thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut command = [0; 1024];
            let count = stream.read(&mut command).unwrap();
            for piece in pieces {
                stream.write_all(&piece).unwrap();
            }
            command[..count].to_vec()
        });
        (ClassicConnection::connect(&address, Duration::from_secs(10)).unwrap(), server)
    }

    fn answer(pieces: Vec<Vec<u8>>) -> (Result<u64, ClassicError>, Vec<u8>) {
        let (mut connection, server) = serve(pieces);
        let mut output = Vec::new();
        let result = connection.run(b"command", &mut output);
        assert_eq!(server.join().unwrap(), b"command");
        (result, output)
    }

    #[test]
    fn an_answer_in_any_pieces_is_read() {
        for size in [0, 1, 5000] {
            let bytes =
                [response_header(size), vec![b'x'; usize::try_from(size).unwrap()]].concat();
            for pieces in [vec![bytes.clone()], bytes.chunks(1).map(<[u8]>::to_vec).collect()] {
                let (result, output) = answer(pieces);
                assert_eq!(result.unwrap(), size);
                assert_eq!(output, vec![b'x'; usize::try_from(size).unwrap()]);
            }
        }
    }

    #[test]
    fn a_server_that_goes_away_is_told_with_what_was_missing() {
        // C-4.6.
        let (result, output) = answer(vec![response_header(5), b"ab".to_vec()]);
        assert_eq!(output, b"ab");
        assert_eq!(
            result.unwrap_err().to_string(),
            "run: the connection ended after 2 of 5 bytes of the output; the server has gone, and \
             whether the command was run is not known"
        );
    }

    #[test]
    fn more_than_the_answer_states_is_an_error() {
        // C-2.3.
        let (result, _) = answer(vec![[response_header(2), b"abc".to_vec()].concat()]);
        assert!(matches!(result, Err(ClassicError::Excess(1))), "{result:?}");
    }

    #[test]
    fn what_no_server_could_take_is_not_sent() {
        // C-3.4, C-3.5: and the connection goes on.
        let (mut connection, server) = serve(vec![response_header(0)]);
        let mut output = Vec::new();
        assert!(matches!(connection.run(b"", &mut output), Err(ClassicError::Empty)));
        let long = vec![b'a'; REQUEST_BYTES_MAX + 1];
        assert!(matches!(connection.run(&long, &mut output), Err(ClassicError::TooLong(_))));
        assert_eq!(connection.run(b"command", &mut output).unwrap(), 0);
        server.join().unwrap();
    }

    #[test]
    fn nobody_there_is_an_error_of_one_line() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = ClassicConnection::connect(&address, Duration::from_secs(10)).unwrap_err();
        let expected = format!("connect: cannot reach {address}: ");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
