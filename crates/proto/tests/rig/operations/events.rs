//! Takes the events of both sides and holds them against what each has done.

use afar_proto::connection::{Stream, Verdict};
use afar_proto::message::GoodbyeCode;
use afar_proto::{ConnectionError, Event};

use super::{RESET_MESSAGE, Stage, World, content, index};

impl World {
    /// Takes the events and holds them against what is known.
    pub(super) fn look(&mut self) {
        self.pair.collect();
        for event in self.pair.server_events() {
            self.server_event(event);
        }
        for event in self.pair.client_events() {
            self.client_event(event);
        }
        while self.abandoned.len() > 5 {
            self.pair.server.release(self.abandoned.remove(0));
        }
    }

    fn server_event(&mut self, event: Event) {
        assert!(!self.server_closed, "an event after the last: {event:?}");
        match event {
            Event::Data { channel, stream, offset, bytes, .. } => {
                let view = self.views.get_mut(&channel).expect("data of a known channel");
                let job = &mut self.jobs[view.job];
                assert_eq!((stream, offset), (Stream::Stdin, job.stdin_got));
                assert_eq!(bytes, content(view.job, stream, offset, bytes.len()));
                job.stdin_got += bytes.len() as u64;
                view.stdin_unconsumed += bytes.len();
                assert!(job.stdin_got <= job.stdin_sent);
                assert!(view.stdin_unconsumed <= self.window, "a window is a bound");
            }
            Event::End { channel, stream } => {
                let view = self.views.get(&channel).expect("the end of a known channel");
                assert_eq!(stream, Stream::Stdin);
                assert!(view.stdin_finished);
                let job = &self.jobs[view.job];
                assert_eq!(job.stdin_got, job.stdin_sent);
            }
            Event::Stopped { channel, stream } => {
                let view = self.views.get_mut(&channel).expect("a known channel");
                view.stopped_at_server[index(stream)] = true;
            }
            Event::Acked { channel, stream, offset } => {
                let view = self.views.get(&channel).expect("a known channel");
                assert!(offset <= self.jobs[view.job].received[index(stream)]);
            }
            Event::Failed { message, .. } => assert_eq!(message, RESET_MESSAGE),
            Event::Abandoned { channel } | Event::Detached { channel } => {
                let view = self.views.get_mut(&channel).expect("a known channel");
                assert!(!view.client_open, "only what was given up is abandoned");
                view.server = Stage::Gone;
                self.abandoned.push(channel);
            }
            Event::Confirmed { channel } => {
                let view = self.views.get_mut(&channel).expect("a known channel");
                assert_eq!(view.server, Stage::Sealed, "only a seal is confirmed");
                view.server = Stage::Gone;
            }
            Event::Closed(error) => {
                self.check_end(&error);
                self.server_closed = true;
            }
            _ => {}
        }
    }

    fn client_event(&mut self, event: Event) {
        assert!(!self.client_closed, "an event after the last: {event:?}");
        match event {
            Event::Opened { channel, .. } => {
                self.views.get_mut(&channel).expect("a known channel").running_at_client = true;
            }
            Event::Attached { channel, attached } => {
                let view = self.views.get_mut(&channel).expect("a known channel");
                view.running_at_client = true;
                let job = &mut self.jobs[view.job];
                for stream in Stream::OUTPUTS {
                    let at = index(stream);
                    let from = attached.streams[stream.name()].offset;
                    job.gap[at] |= from != job.received[at];
                    job.received[at] = from;
                }
            }
            Event::Data { channel, stream, offset, bytes, .. } => {
                let view = self.views.get_mut(&channel).expect("data of a known channel");
                let job = &mut self.jobs[view.job];
                let at = index(stream);
                // What was under way when the channel was given up is of no use any more.
                if !view.client_open {
                    return;
                }
                assert!(!view.stopped_by_client[at], "data of a stopped stream");
                assert!(!view.ended[at], "data after the end");
                assert_eq!(offset, job.received[at], "every byte once and in order");
                assert_eq!(bytes, content(view.job, stream, offset, bytes.len()));
                job.received[at] += bytes.len() as u64;
                job.seen[at].update(&bytes);
                view.unconsumed[at] += bytes.len();
                assert!(view.unconsumed[at] <= self.window, "a window is a bound");
            }
            Event::Gap { channel, stream, from, to } => {
                let view = self.views.get_mut(&channel).expect("a gap of a known channel");
                let at = index(stream);
                if view.client_open {
                    let job = &mut self.jobs[view.job];
                    assert!(!view.stopped_by_client[at] && !view.ended[at]);
                    assert!(from == job.received[at] && to > from, "every gap once and in order");
                    job.received[at] = to;
                    job.gap[at] = true;
                }
            }
            Event::End { channel, stream } => {
                let view = self.views.get_mut(&channel).expect("the end of a known channel");
                if view.client_open {
                    assert_eq!(
                        self.jobs[view.job].received[index(stream)],
                        view.written[index(stream)]
                    );
                    view.ended[index(stream)] = true;
                }
            }
            Event::Seal { channel, verdict, .. } => {
                let view = self.views.get_mut(&channel).expect("the seal of a known channel");
                let job = &self.jobs[view.job];
                let gap = (0..2).any(|at| job.gap[at] && !view.stopped_by_client[at]);
                let expected = if gap { Verdict::Suffix } else { Verdict::Whole };
                assert_eq!(verdict, expected);
                view.verdict = Some(verdict);
                view.client_open = false;
            }
            Event::Refused { channel, .. } => {
                self.views.get_mut(&channel).expect("a known channel").client_open = false;
            }
            Event::Failed { channel, message } => {
                assert_eq!(message, RESET_MESSAGE);
                self.views.get_mut(&channel).expect("a known channel").client_open = false;
            }
            Event::Closed(error) => {
                self.check_end(&error);
                self.client_closed = true;
            }
            _ => {}
        }
    }

    fn check_end(&mut self, error: &ConnectionError) {
        let expected = matches!(
            error,
            ConnectionError::Cut
                | ConnectionError::LocallyClosed
                | ConnectionError::PeerClosed(_)
                | ConnectionError::TimedOut
        );
        assert!(expected, "{error:?}");
        if let ConnectionError::PeerClosed(goodbye) = error {
            assert_ne!(goodbye.code, GoodbyeCode::Protocol, "{goodbye:?}");
        }
        self.ended = true;
    }
}
