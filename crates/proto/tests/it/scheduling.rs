//! What leaves first: replies, then keystrokes, then bulk in turns, and each channel in order.

use std::collections::VecDeque;

use afar_proto::connection::{Stream, Verdict};
use afar_proto::frame::{Frame, FrameReader, Kind, Phase};
use afar_proto::message::{Command, GoodbyeCode, OpenSpec};
use afar_proto::{ChannelId, Connection, Event};
use bytes::Bytes;

use crate::rig::pair::Pair;
use crate::rig::samples;

/// The next frames, at least `budget` bytes of them if there are so many.
fn next_frames(connection: &mut Connection, budget: usize) -> Vec<Frame> {
    let mut out = VecDeque::new();
    connection.poll_transmit(&mut out, budget);
    let mut reader = FrameReader::new(Phase::Jobs);
    out.iter().for_each(|bytes| reader.push(bytes));
    std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
}

fn fill(pair: &mut Pair, channel: ChannelId, bytes: usize) {
    let mut server = pair.server.channel(channel).unwrap();
    server.write(Stream::Stdout, 0, vec![0; bytes].into()).unwrap();
}

fn large(job: &str) -> OpenSpec {
    let script = "x".repeat(3 << 20);
    OpenSpec { command: Command::Script(script.as_str().into()), ..samples::spec(job) }
}

/// W-6.9: a keystroke is not queued behind bulk.
#[test]
fn a_small_write_goes_ahead_of_bulk() {
    let mut pair = Pair::new();
    let bulk = pair.open(&samples::spec("bulk"));
    let shell = pair.open(&samples::spec("shell"));
    fill(&mut pair, bulk, 900_000);
    assert_eq!(next_frames(&mut pair.server, 1)[0].channel, bulk.as_u32());
    fill(&mut pair, shell, 5);
    assert_eq!(next_frames(&mut pair.server, 1)[0].channel, shell.as_u32());
    assert_eq!(next_frames(&mut pair.server, 1)[0].channel, bulk.as_u32());
}

/// W-6.9: and however many keystrokes there are, bulk is not starved.
#[test]
fn bulk_has_its_turn_among_small_writes() {
    let mut pair = Pair::new();
    let bulk = pair.open(&samples::spec("bulk"));
    let shells: Vec<ChannelId> =
        (0..50).map(|index| pair.open(&samples::spec(&format!("s{index}")))).collect();
    fill(&mut pair, bulk, 900_000);
    for shell in &shells {
        fill(&mut pair, *shell, 1);
    }
    let mut waited = 0;
    let mut turns = 0;
    while turns < 10 {
        let channel = next_frames(&mut pair.server, 1)[0].channel;
        if channel == bulk.as_u32() {
            (waited, turns) = (0, turns + 1);
            continue;
        }
        waited += 1;
        assert!(waited <= 32, "after {turns} turns");
        // Whoever has sent has more to say at once.
        let shell = shells.iter().find(|shell| shell.as_u32() == channel).unwrap();
        fill(&mut pair, *shell, 1);
    }
}

/// W-6.9: bulk channels take turns, a frame each.
#[test]
fn bulk_channels_alternate() {
    let mut pair = Pair::new();
    let first = pair.open(&samples::spec("a"));
    let second = pair.open(&samples::spec("b"));
    fill(&mut pair, first, 900_000);
    fill(&mut pair, second, 900_000);
    let channels: Vec<u32> =
        next_frames(&mut pair.server, 500_000).iter().map(|frame| frame.channel).collect();
    let expected: Vec<u32> =
        [first, second].iter().cycle().take(channels.len()).map(|id| id.as_u32()).collect();
    assert_eq!(channels, expected);
}

/// W-7.2, W-7.3: the exit overtakes queued output, the seal never does.
#[test]
fn the_exit_goes_first_and_the_seal_last() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    fill(&mut pair, channel, 300_000);
    let sealer = samples::sealer_of(&[0; 300_000]);
    let mut server = pair.server.channel(channel).unwrap();
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&sealer, &afar_proto::seal::Sealer::new()));
    assert!(pair.server.channel(channel).is_some(), "open until the seal has left");
    let kinds: Vec<Kind> =
        next_frames(&mut pair.server, usize::MAX).iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds[0], Kind::Exit);
    assert_eq!(kinds[kinds.len() - 3..], [Kind::End, Kind::End, Kind::Seal]);
    assert!(pair.server.channel(channel).is_some(), "open until the client has confirmed it");
}

/// W-7.3: nothing is written behind a seal.
#[test]
fn a_sealed_channel_takes_no_more() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    let empty = afar_proto::seal::Sealer::new();
    let mut server = pair.server.channel(channel).unwrap();
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&empty, &empty));
    let mut server = pair.server.channel(channel).unwrap();
    assert_eq!(server.writable(Stream::Stdout), 0);
    assert!(server.write(Stream::Stdout, 0, Bytes::from_static(b"x")).is_err());
}

/// W-7.5: what another process holds open is ended where it is, and the seal says so.
#[test]
fn a_stream_that_is_left_open_is_ended_by_the_seal() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("daemon"));
    fill(&mut pair, channel, 3);
    let mut server = pair.server.channel(channel).unwrap();
    server.finish(Stream::Stderr);
    server.exit(&samples::exited(0));
    let stdout = samples::sealer_of(&[0; 3]).seal(false);
    let stderr = samples::sealer_of(b"").seal(true);
    let mut seal = samples::seal_of([("stdout", stdout), ("stderr", stderr)]);
    seal.streams_left_open = true;
    server.seal(&seal);
    pair.drive();
    let events = pair.client_events();
    let ended = |stream| events.contains(&Event::End { channel, stream });
    assert!(ended(Stream::Stdout) && ended(Stream::Stderr));
    let expected = Event::Seal { channel, seal: Box::new(seal), verdict: Verdict::Whole };
    assert_eq!(events.last(), Some(&expected));
}

/// W-5.5: megabytes of a request delay nobody's keystroke.
#[test]
fn a_large_open_does_not_delay_a_keystroke() {
    let mut pair = Pair::new();
    let shell = pair.open(&samples::spec_with_stdin("shell"));
    let opened = pair.client.open(&large("large")).unwrap();
    assert_eq!(next_frames(&mut pair.client, 1)[0].channel, opened.as_u32());
    let mut client = pair.client.channel(shell).unwrap();
    client.write(Stream::Stdin, 0, Bytes::from_static(b"k")).unwrap();
    let frame = &next_frames(&mut pair.client, 1)[0];
    assert_eq!((frame.kind, frame.channel), (Kind::Data, shell.as_u32()));
}

/// W-5.5: and they take turns with bulk, in both directions of the alternation.
#[test]
fn a_large_open_alternates_with_bulk() {
    let mut pair = Pair::new();
    let bulk = pair.open(&samples::spec_with_stdin("bulk"));
    let mut client = pair.client.channel(bulk).unwrap();
    client.write(Stream::Stdin, 0, vec![0; 900_000].into()).unwrap();
    pair.client.open(&large("large")).unwrap();
    let kinds: Vec<Kind> =
        next_frames(&mut pair.client, 600_000).iter().map(|frame| frame.kind).collect();
    assert!(kinds.len() > 8);
    assert!(kinds.windows(2).all(|pair| pair[0] != pair[1]), "{kinds:?}");
}

/// W-8.3: a goodbye is the last frame, also behind a request that takes many turns.
#[test]
fn a_goodbye_waits_for_a_large_open() {
    let mut pair = Pair::new();
    pair.client.open(&large("large")).unwrap();
    pair.client.close(GoodbyeCode::Done, "");
    let mut kinds = Vec::new();
    while let frames @ [_, ..] = &next_frames(&mut pair.client, 100_000)[..] {
        kinds.extend(frames.iter().map(|frame| frame.kind));
    }
    assert!(kinds.len() > 40);
    assert_eq!(kinds.iter().position(|kind| *kind == Kind::Goodbye), Some(kinds.len() - 1));
}

/// W-5.5: what is said of a channel never overtakes its OPEN, nor one OPEN another.
#[test]
fn nothing_overtakes_the_open_of_its_channel() {
    let mut pair = Pair::new();
    let first = pair.client.open(&large("first")).unwrap();
    let second = pair.client.open(&samples::spec("second")).unwrap();
    pair.client.channel(second).unwrap().signal("TERM");
    pair.client.channel(first).unwrap().signal("INT");
    pair.client.channel(second).unwrap().close();
    // Part of the first has left when more is said of it.
    let mut frames = next_frames(&mut pair.client, 200_000);
    pair.client.channel(first).unwrap().signal("HUP");
    pair.client.channel(first).unwrap().close();
    frames.extend(next_frames(&mut pair.client, usize::MAX));
    let of = |channel: ChannelId| -> Vec<Kind> {
        let mine = frames.iter().filter(|frame| frame.channel == channel.as_u32());
        let mut kinds: Vec<Kind> = mine.map(|frame| frame.kind).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(of(first), [Kind::Open, Kind::Window, Kind::Signal, Kind::Close]);
    assert_eq!(of(second), [Kind::Open, Kind::Window, Kind::Signal, Kind::Close]);
    let channels: Vec<u32> =
        frames.iter().filter(|frame| frame.kind == Kind::Open).map(|frame| frame.channel).collect();
    assert!(channels.is_sorted());

    // And when all has left, it goes ahead of everything again.
    let third = pair.client.open(&samples::spec("third")).unwrap();
    next_frames(&mut pair.client, usize::MAX);
    pair.client.open(&large("fourth")).unwrap();
    pair.client.channel(third).unwrap().signal("TERM");
    assert_eq!(next_frames(&mut pair.client, 1)[0].kind, Kind::Signal);
}
