//! An output, kept until its size is known: in memory first, then in a file that has no name.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use afar_proto::classic::response_header;
use afar_sys::private_files::{PrivateDirError, ensure_private_dir};
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::limits::{ANSWER_BYTES_MAX, FILES_BYTES_MAX, MEMORY_BYTES_MAX};

/// Bytes that one call moves from a file to a socket, so that a connection's thread is given back
/// in between.
const SENDFILE_BYTES: usize = 256 * 1024;

/// Why an output could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    /// It is longer than one may be.
    #[error("the output is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// The outputs of other commands leave no room.
    #[error(
        "the outputs that wait to be sent leave no room for it (together {FILES_BYTES_MAX} bytes)"
    )]
    NoRoom,
    /// The directory of the files can't be used.
    #[error("the output is too long for memory, and there is no place for it: {0}")]
    Directory(#[from] PrivateDirError),
    /// The file could not be made or written.
    #[error("the output is too long for memory, and can't be written to a file in {}: {source}", .directory.display())]
    Write {
        /// Where the file is.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that writes has failed.
    #[error("the output can't be written to a file: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// Where the files are, and how much is in them.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    used_bytes: AtomicU64,
}

impl Store {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, used_bytes: AtomicU64::new(0) }
    }

    /// Makes a file that nobody else can open and that is gone with its descriptor.
    fn open(&self) -> Result<File, KeepError> {
        ensure_private_dir(&self.directory)?;
        tempfile::tempfile_in(&self.directory).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> KeepError {
        KeepError::Write { directory: self.directory.clone(), source }
    }
}

/// An output that is being gathered, and then sent.
#[derive(Debug)]
pub(super) struct Answer {
    store: Arc<Store>,
    /// What follows the file's bytes.
    memory: Vec<u8>,
    /// `Some` iff `filed_bytes` is not 0.
    file: Option<File>,
    filed_bytes: u64,
}

impl Answer {
    /// One without output.
    pub(super) fn new(store: &Arc<Store>) -> Self {
        Self { store: Arc::clone(store), memory: Vec::new(), file: None, filed_bytes: 0 }
    }

    /// A line of afar's own in the place of an output (`C-6.5`).
    pub(super) fn line(store: &Arc<Store>, text: &str) -> Self {
        let mut answer = Self::new(store);
        answer.memory = format!("afar: {text}\n").into_bytes();
        answer
    }

    /// How much there is.
    pub(super) fn bytes(&self) -> u64 {
        self.filed_bytes.saturating_add(u64::try_from(self.memory.len()).unwrap_or(u64::MAX))
    }

    /// Appends to the output. After an error, or when it is dropped halfway, the answer is of no use.
    pub(super) async fn push(&mut self, bytes: &[u8]) -> Result<(), KeepError> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.bytes().saturating_add(more) > ANSWER_BYTES_MAX {
            return Err(KeepError::TooLong);
        }
        if self.memory.len().saturating_add(bytes.len()) > MEMORY_BYTES_MAX {
            self.spill().await?;
        }
        self.memory.extend_from_slice(bytes);
        Ok(())
    }

    /// Moves what is in memory to the file. On a thread of its own: the kernel makes writers wait
    /// when the disk can't keep up.
    async fn spill(&mut self) -> Result<(), KeepError> {
        let bytes = u64::try_from(self.memory.len()).unwrap_or(u64::MAX);
        let used = self.store.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Given back by the drop, whatever comes of the writing.
        self.filed_bytes = self.filed_bytes.saturating_add(bytes);
        if used.saturating_add(bytes) > FILES_BYTES_MAX {
            return Err(KeepError::NoRoom);
        }
        let (store, file) = (Arc::clone(&self.store), self.file.take());
        let mut memory = std::mem::take(&mut self.memory);
        let written = tokio::task::spawn_blocking(move || {
            let mut file = file.map_or_else(|| store.open(), Ok)?;
            file.write_all(&memory).map_err(|source| store.failed(source))?;
            memory.clear();
            Ok::<_, KeepError>((file, memory))
        });
        let (file, memory) = written.await??;
        self.file = Some(file);
        self.memory = memory;
        Ok(())
    }

    /// Sends the three parts (`C-4.1`).
    pub(super) async fn send(&self, socket: &TcpStream) -> io::Result<()> {
        let header = response_header(self.bytes());
        match &self.file {
            None => write_all(socket, [&header, &self.memory]).await,
            Some(file) => {
                send_ahead(socket, &header).await?;
                send_file(socket, file, self.filed_bytes).await?;
                write_all(socket, [&self.memory, &[]]).await
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.store.used_bytes.fetch_sub(self.filed_bytes, Ordering::Relaxed);
    }
}

/// Writes all of both parts, with one system call if the socket takes that much.
async fn write_all(socket: &TcpStream, parts: [&[u8]; 2]) -> io::Result<()> {
    let mut parts = parts.map(IoSlice::new);
    let mut left = &mut parts[..];
    // Parts without bytes need no call.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        socket.writable().await?;
        match socket.try_write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes what more will follow at once, so that it needs no packet of its own.
async fn send_ahead(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let send = || Ok(rustix::net::send(socket, bytes, flags)?);
        let sent = socket.async_io(Interest::WRITABLE, send).await?;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Sends the first `bytes` of the file. sendfile(2) was measured against reading and writing 512 MiB in
/// the same pieces: twice as fast, for a sixth of the processor time.
async fn send_file(socket: &TcpStream, file: &File, bytes: u64) -> io::Result<()> {
    let mut offset = 0;
    while offset < bytes {
        let left = usize::try_from(bytes - offset).unwrap_or(usize::MAX);
        let send = || {
            let count = left.min(SENDFILE_BYTES);
            Ok(rustix::fs::sendfile(socket.as_fd(), file.as_fd(), Some(&mut offset), count)?)
        };
        if socket.async_io(Interest::WRITABLE, send).await? == 0 {
            // Nobody else has the file: only a broken disk makes it shorter than it was.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    fn store() -> (TempDir, Arc<Store>) {
        let root = TempDir::new().unwrap();
        let store = Arc::new(Store::new(root.path().join("classic")));
        (root, store)
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..=255).cycle().skip(bytes % 251).take(bytes).collect()
    }

    /// What a client reads of an answer that is pushed in pieces of this size.
    async fn exchange(store: &Arc<Store>, output: &[u8], piece: usize) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut answer = Answer::new(store);
        for bytes in output.chunks(piece) {
            answer.push(bytes).await.unwrap();
            assert!(answer.memory.len() <= MEMORY_BYTES_MAX.max(piece));
        }
        assert_eq!(answer.file.is_some(), output.len() > MEMORY_BYTES_MAX);
        let mut received = Vec::new();
        let send = async {
            answer.send(&server).await.unwrap();
            drop(server);
        };
        let (read, ()) = tokio::join!(client.read_to_end(&mut received), send);
        read.unwrap();
        received
    }

    #[tokio::test]
    async fn outputs_of_any_size_arrive_behind_their_size() {
        // C-4.1, C-6.3: on both sides of the memory's limit.
        let (root, store) = store();
        for size in [0, 1, 1023, 1024, 1025, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX + 1, 3_000_000] {
            for piece in [1000, 64 * 1024] {
                let output = pattern(size);
                let expected = [response_header(u64::try_from(size).unwrap()), output.clone()];
                assert!(exchange(&store, &output, piece).await == expected.concat(), "{size}");
            }
        }
        assert_eq!(store.used_bytes.load(Ordering::Relaxed), 0);
        // A file without a name leaves nothing.
        assert_eq!(std::fs::read_dir(root.path().join("classic")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_three_parts_leave_with_one_call() {
        // A script that reads once gets all of a small answer, as far as it ever can.
        let (_root, store) = store();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        afar_sys::socket::set_tcp_nodelay(&server).unwrap();
        let mut answer = Answer::new(&store);
        answer.push(b"output").await.unwrap();
        answer.send(&server).await.unwrap();
        let mut once = [0; 1024];
        let count = client.read(&mut once).await.unwrap();
        assert_eq!(once[..count], [&response_header(6)[..], b"output"].concat());
    }

    #[tokio::test]
    async fn an_output_has_a_limit() {
        // C-6.4, on both sides.
        let (_root, store) = store();
        let mut answer = Answer::new(&store);
        answer.filed_bytes = ANSWER_BYTES_MAX - 2;
        store.used_bytes.store(answer.filed_bytes, Ordering::Relaxed);
        answer.push(b"xx").await.unwrap();
        assert!(matches!(answer.push(b"x").await, Err(KeepError::TooLong)));
        drop(answer);
        assert_eq!(store.used_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn all_files_together_have_a_limit() {
        // C-6.4, on both sides.
        let (_root, store) = store();
        let piece = vec![0; MEMORY_BYTES_MAX];
        let size = u64::try_from(MEMORY_BYTES_MAX).unwrap();
        store.used_bytes.store(FILES_BYTES_MAX - size, Ordering::Relaxed);
        let mut answer = Answer::new(&store);
        answer.push(&piece).await.unwrap();
        answer.push(&piece).await.unwrap();
        assert!(matches!(answer.push(&piece).await, Err(KeepError::NoRoom)));
        drop(answer);
        assert_eq!(store.used_bytes.load(Ordering::Relaxed), FILES_BYTES_MAX - size);
    }

    #[tokio::test]
    async fn fault_58_a_full_disk_is_an_error_and_not_a_cut_output() {
        let (_root, store) = store();
        let mut answer = Answer::new(&store);
        answer.file = Some(File::options().write(true).open("/dev/full").unwrap());
        answer.push(&vec![0; MEMORY_BYTES_MAX]).await.unwrap();
        let error = answer.push(b"x").await.unwrap_err();
        assert!(error.to_string().contains("No space left on device"), "{error}");
    }

    #[tokio::test]
    async fn fault_63_a_planted_link_in_the_place_of_the_directory_is_refused() {
        let (root, store) = store();
        std::os::unix::fs::symlink("/tmp", root.path().join("classic")).unwrap();
        let mut answer = Answer::new(&store);
        answer.push(&vec![0; MEMORY_BYTES_MAX]).await.unwrap();
        assert!(matches!(answer.push(b"x").await, Err(KeepError::Directory(_))));
    }
}
