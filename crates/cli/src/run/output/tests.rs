//! Output over pipes whose readers read, stop reading, or go away.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};

use super::*;

/// A pipe whose writing end lives as long as the process, as stdout does.
fn pipe() -> (std::fs::File, BorrowedFd<'static>) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let writer: &'static OwnedFd = Box::leak(Box::new(writer));
    (reader.into(), writer.as_fd())
}

fn read_exactly(mut reader: &std::fs::File, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    reader.read_exact(&mut buffer).unwrap();
    buffer
}

/// Fills the output until it takes no more; returns what was pushed.
fn fill(output: &mut Output, stream: Stream) -> Vec<u8> {
    let mut pushed = Vec::new();
    let mut number = 0_u32;
    while output.has_room() {
        let piece: Vec<u8> = (0..16 * 1024)
            .flat_map(|_| {
                number += 1;
                number.to_be_bytes()
            })
            .collect();
        pushed.extend_from_slice(&piece);
        output.push(stream, piece.into());
    }
    pushed
}

async fn drained(output: &mut Output) {
    while !output.is_empty() {
        output.changed().await;
    }
}

#[test]
fn a_small_piece_is_written_at_once() {
    let ((out, stdout), (err, stderr)) = (pipe(), pipe());
    let mut output = Output::over([stdout, stderr]);
    output.push(Stream::Stdout, Bytes::from_static(b"out"));
    output.push(Stream::Stderr, Bytes::from_static(b"err"));
    assert!(output.is_empty());
    assert_eq!(read_exactly(&out, 3), b"out");
    assert_eq!(read_exactly(&err, 3), b"err");
}

#[tokio::test]
async fn a_reader_that_stops_blocks_nobody_and_loses_nothing() {
    let ((out, stdout), (err, stderr)) = (pipe(), pipe());
    let mut output = Output::over([stdout, stderr]);
    let pushed = fill(&mut output, Stream::Stdout);
    assert!(pushed.len() >= QUEUED_COST_MAX);
    assert!(pushed.len() < QUEUED_COST_MAX + 512 * 1024, "memory is bounded");
    // The other stream goes on meanwhile.
    output.push(Stream::Stderr, Bytes::from_static(b"err"));
    assert_eq!(read_exactly(&err, 3), b"err");
    let length = pushed.len();
    let reader = thread::spawn(move || read_exactly(&out, length));
    drained(&mut output).await;
    assert!(output.has_room());
    assert_eq!(reader.join().unwrap(), pushed);
}

#[tokio::test]
async fn single_bytes_for_a_reader_that_stopped_cost_what_they_take() {
    let ((out, stdout), (_err, stderr)) = (pipe(), pipe());
    let mut output = Output::over([stdout, stderr]);
    let mut pushed = fill(&mut output, Stream::Stdout).len();
    read_exactly(&out, pushed);
    drained(&mut output).await;
    // A pipe that is full again, and then pieces that only its reader's return can move.
    let filling = vec![0; 2 * PIPE_BUFFER_BYTES];
    pushed = filling.len();
    output.push(Stream::Stdout, filling.into());
    let mut pieces = 0;
    while output.has_room() {
        output.push(Stream::Stdout, Bytes::from_static(b"x"));
        pieces += 1;
    }
    assert!(pieces <= QUEUED_COST_MAX / PIECE_COST, "{pieces} pieces wait");
    assert!(pieces > QUEUED_COST_MAX / PIECE_COST / 4, "{pieces} pieces wait");
    let reader = thread::spawn(move || read_exactly(&out, pushed + pieces));
    drained(&mut output).await;
    assert!(reader.join().unwrap().ends_with(b"xxx"));
}

#[tokio::test]
async fn a_reader_that_went_away_is_told_once_and_only_of_its_stream() {
    let ((out, stdout), (err, stderr)) = (pipe(), pipe());
    let mut output = Output::over([stdout, stderr]);
    drop(out);
    output.push(Stream::Stdout, Bytes::from_static(b"lost"));
    let (stream, error) = output.take_failure().unwrap();
    assert_eq!((stream, error.kind()), (Stream::Stdout, io::ErrorKind::BrokenPipe));
    assert!(output.has_failed(Stream::Stdout));
    output.push(Stream::Stdout, Bytes::from_static(b"lost"));
    output.push(Stream::Stderr, Bytes::from_static(b"kept"));
    assert!(output.take_failure().is_none());
    assert!(output.is_empty());
    assert_eq!(read_exactly(&err, 4), b"kept");
}

#[tokio::test]
async fn a_reader_that_goes_away_while_it_is_waited_for_ends_the_wait() {
    let ((out, stdout), (_err, stderr)) = (pipe(), pipe());
    let mut output = Output::over([stdout, stderr]);
    fill(&mut output, Stream::Stdout);
    drop(out);
    let mut failure = None;
    while failure.is_none() {
        output.changed().await;
        failure = output.take_failure();
    }
    let (stream, error) = failure.unwrap();
    assert_eq!((stream, error.kind()), (Stream::Stdout, io::ErrorKind::BrokenPipe));
    drained(&mut output).await;
}

#[tokio::test]
async fn two_streams_of_one_file_keep_their_order() {
    let (reader, both) = pipe();
    let mut output = Output::over([both, both]);
    // Enough that the pipe is full and everything has to wait.
    let mut expected = fill(&mut output, Stream::Stdout);
    for number in 0..100 {
        let stream = if number % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
        let line = format!("{number} {}\n", stream.name());
        expected.extend_from_slice(line.as_bytes());
        output.push(stream, line.into());
    }
    let length = expected.len();
    let thread = thread::spawn(move || read_exactly(&reader, length));
    drained(&mut output).await;
    assert!(thread.join().unwrap() == expected);
}

#[test]
fn files_and_the_null_device_never_need_a_thread() {
    let null: &'static std::fs::File =
        Box::leak(Box::new(std::fs::File::options().write(true).open("/dev/null").unwrap()));
    let file: &'static std::fs::File = Box::leak(Box::new(tempfile::tempfile().unwrap()));
    let mut output = Output::over([null.as_fd(), file.as_fd()]);
    for stream in Stream::OUTPUTS {
        output.push(stream, Bytes::from(vec![b'x'; 1024 * 1024]));
    }
    assert!(output.is_empty());
    assert!(output.lanes().all(|lane| !lane.running));
    assert_eq!(file.metadata().unwrap().len(), 1024 * 1024);
}
