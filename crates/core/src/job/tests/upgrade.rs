//! A machine that is written down goes on in another process as if nothing had happened (`J-3.7`).

use afar_proto::seal::Sealer;

use super::*;

impl Rig {
    /// Everybody leaves, and the machine goes on as what was written down of it.
    fn upgrade(&mut self) {
        let attached: Vec<_> = self.heard.keys().copied().collect();
        for id in attached {
            self.leave(id, Leave::SentAway);
        }
        let written = serde_json::to_vec(&self.machine).unwrap();
        self.machine = serde_json::from_slice(&written).unwrap();
    }
}

#[test]
fn a_job_that_is_upgraded_again_and_again_loses_nothing_and_its_seal_holds() {
    let mut rig = Rig::new(Settings { stdin: true, ..Settings::default() });
    let mut written = Vec::new();
    let mut read = Vec::new();
    // Pieces that are held loose and such that are put together, around what is released.
    for round in 0..40_u64 {
        let owner = AttachmentId(100 + round);
        let wanted = read.len() as u64;
        let at = rig.attach(&request(owner, AttachMode::Take, wanted));
        assert_eq!((at.streams[0], at.stdin.unwrap().received), (Some(wanted), round * 7));
        assert!(rig.machine.input(owner, 7));
        rig.machine.input_taken(7);
        rig.allow(owner, 5000);
        for size in [1, 700, 3, 2000, 1, 1, 64] {
            let bytes: Vec<u8> =
                (0..size).map(|at| ((round * 31 + at) % 251).try_into().unwrap()).collect();
            rig.write_all(&bytes);
            written.extend_from_slice(&bytes);
        }
        read.extend(rig.heard(owner).stdout());
        rig.machine.acked(owner, Stream::Stdout, read.len() as u64 - round);
        rig.drain();
        rig.upgrade();
        rig.pass(Duration::from_secs(1));
    }
    let last = rig.attach(&request(C, AttachMode::Take, read.len() as u64)).streams[0];
    assert_eq!(last, Some(read.len() as u64));
    assert_eq!(read.len(), written.len());
    rig.end_streams();
    rig.upgrade();
    rig.exit(3);
    rig.upgrade();
    rig.attach(&request(B, AttachMode::Take, read.len() as u64));
    let seal = rig.heard(B).seal.clone().unwrap();
    assert_eq!(seal.end, End::Exited { code: 3 });
    assert_eq!(read, written);
    let mut sealer = Sealer::new();
    sealer.update(&written);
    assert!(sealer.matches(&seal.streams["stdout"]));
}

#[test]
fn time_limits_and_causes_go_on() {
    let timeout = Some(Duration::from_secs(10));
    let mut rig = Rig::new(Settings { timeout, ..Settings::default() });
    rig.pass(Duration::from_secs(4));
    rig.upgrade();
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.ended_for, []);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.ended_for, [Cause::Timeout]);
    rig.upgrade();
    rig.exit(0);
    assert_eq!(rig.machine.exit().unwrap().end, End::Timeout);
}

#[test]
fn what_was_dropped_stays_a_gap_that_is_named() {
    let mut rig = Rig::new(Settings { overflow: Overflow::Drop, ..Settings::default() });
    rig.leave(A, Leave::Lost);
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..40 {
        rig.write_all(&piece);
    }
    rig.upgrade();
    rig.finish(0);
    let seal = rig.machine.seal().unwrap();
    assert_eq!(seal.streams["stdout"].bytes, 40 * 64 * 1024);
    assert!(!seal.streams["stdout"].gaps.is_empty());
}

#[test]
fn what_can_not_be_is_not_taken_for_a_job() {
    let mut rig = Rig::new(Settings::default());
    rig.allow(A, 100);
    rig.write_all(b"abc");
    let written = serde_json::to_value(&rig.machine).unwrap();
    let changed = |pointer: &str, to: serde_json::Value| {
        let mut changed = written.clone();
        *changed.pointer_mut(pointer).unwrap() = to;
        serde_json::from_value::<Machine>(changed)
    };
    assert!(changed("/sources/0/sealer", "AAAA".into()).is_err());
    assert!(changed("/sources/0/stream", "stdin".into()).is_err());
    assert!(changed("/sources/0/held/start", u64::MAX.into()).is_err());
    assert!(changed("/sources/0/held/pieces/0/bytes", "".into()).is_err());
    assert!(changed("/started", true.into()).is_ok());
}
