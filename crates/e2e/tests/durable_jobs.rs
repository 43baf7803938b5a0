//! Durable jobs as a peer meets them that does only what the frames say: who owns a job, what is held
//! for whom, what ends it, and what is known of it afterwards.

use std::collections::BTreeMap;

use afar_e2e::raw::{Key, RawClient, RawFrame, data, frame, spec, window};
use afar_e2e::{Home, Host};
use afar_proto::frame::Kind;
use afar_proto::json;
use afar_proto::message::{
    Attach, AttachMode, AttachOffset, AttachStart, JobId, JobQuery, KillQuery, ListQuery,
    OnDisconnect, OpenSpec, Query, Retry,
};
use serde_json::Value;

fn log_in(host: &Host) -> RawClient {
    RawClient::log_in(host.address(), &Key::of_file(&host.key()), host.user())
}

/// A script that outlives its client.
fn lasting(id: &str, script: &str) -> OpenSpec {
    OpenSpec { on_disconnect: None, ..spec(id, &["sh", "-c", script]) }
}

fn job(id: &str) -> JobId {
    JobId::new(id).expect("the test's ids are ids")
}

fn attach_from(id: &str, offset: u64) -> Attach {
    let offsets =
        [("stdout".to_owned(), AttachOffset(offset)), ("stderr".to_owned(), AttachOffset(0))];
    Attach::new(job(id), offsets.into())
}

fn watch(id: &str) -> Attach {
    Attach { mode: AttachMode::Watch, ..attach_from(id, 0) }
}

/// What of a job came on a channel.
#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    gaps: Vec<(u64, u64)>,
    first: u64,
    exit: Option<Value>,
    seal: Option<Value>,
}

trait Peer {
    fn attach(&mut self, channel: u32, attach: &Attach);
    fn ask(&mut self, channel: u32, query: &Query) -> RawFrame;
    fn credit(&mut self, channel: u32, bytes: u32);
    fn say(&mut self, kind: Kind, channel: u32);
    fn hear(&mut self, channel: u32, enough: impl Fn(&Heard) -> bool) -> Heard;
    /// Hears it to its end, and confirms that.
    fn finish(&mut self, channel: u32) -> Heard;
}

impl Peer for RawClient {
    fn attach(&mut self, channel: u32, attach: &Attach) {
        self.link.send(&frame(Kind::Attach.to_byte(), 0, channel, &json::to_vec(attach)));
        self.credit(channel, 1 << 30);
    }

    fn ask(&mut self, channel: u32, query: &Query) -> RawFrame {
        self.link.send(&frame(Kind::Query.to_byte(), 0, channel, &json::to_vec(query)));
        loop {
            let frame = self.link.next_frame().expect("it goes on");
            if frame.channel == channel {
                return frame;
            }
        }
    }

    fn credit(&mut self, channel: u32, bytes: u32) {
        self.link.send(&[window(channel, 1, bytes), window(channel, 2, bytes)].concat());
    }

    fn say(&mut self, kind: Kind, channel: u32) {
        self.link.send(&frame(kind.to_byte(), 0, channel, b""));
    }

    fn hear(&mut self, channel: u32, enough: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = Heard::default();
        let mut at = None;
        while !enough(&heard) {
            let frame = self.link.next_frame().expect("it goes on");
            if frame.channel != channel {
                continue;
            }
            let number = |from: usize| {
                u64::from_be_bytes(frame.payload[from..from + 8].try_into().expect("eight bytes"))
            };
            if frame.is(Kind::Attached) {
                heard.first =
                    frame.json()["streams"]["stdout"]["offset"].as_u64().expect("an offset");
                at = Some(heard.first);
            } else if frame.is(Kind::Opened) {
                at = Some(0);
            } else if frame.is(Kind::Data) && frame.flags == 1 {
                assert_eq!(number(0), *at.get_or_insert(number(0)), "a byte twice, or missing");
                let bytes = &frame.payload[16..];
                at = at.map(|at| at + bytes.len() as u64);
                heard.stdout.extend_from_slice(bytes);
            } else if frame.is(Kind::Gap) && frame.flags == 1 {
                heard.gaps.push((at.expect("it was answered"), number(0)));
                at = Some(number(0));
            } else if frame.is(Kind::Exit) {
                heard.exit = Some(frame.json());
            } else if frame.is(Kind::Seal) {
                heard.seal = Some(frame.json());
            } else {
                assert!(!frame.is(Kind::Refused) && !frame.is(Kind::Reset), "{frame:?}");
            }
        }
        heard
    }

    fn finish(&mut self, channel: u32) -> Heard {
        let heard = self.hear(channel, |heard| heard.seal.is_some());
        self.say(Kind::Close, channel);
        heard
    }
}

fn has(text: &'static str) -> impl Fn(&Heard) -> bool {
    move |heard| heard.stdout.ends_with(text.as_bytes())
}

/// The list as everybody who may see it sees it.
fn list(client: &mut RawClient, channel: u32) -> BTreeMap<String, Value> {
    let answer = client.ask(channel, &Query::List(ListQuery::default()));
    let answer = answer.json();
    let jobs = answer["jobs"].as_array().expect("a page");
    jobs.iter().map(|job| (job["job"].as_str().expect("an id").to_owned(), job.clone())).collect()
}

#[test]
fn fault_31_65_68_a_lost_link_loses_nothing_and_the_same_request_is_the_same_job() {
    // J-1.3, J-2.3, J-3.1, J-4.2
    let host = Host::start();
    let starts = host.file("starts");
    let script = format!(
        "echo $$ >> {}; echo one; read x; echo $x; read x; echo $x; exit 7",
        starts.display()
    );
    let wanted = OpenSpec { stdin: true, ..lasting("j", &script) };
    let mut first = log_in(&host);
    first.open(1, &wanted);
    first.hear(1, has("one\n"));
    first.link.send(&data(1, 0, 0, b"two\n"));
    first.hear(1, has("two\n"));
    drop(first);
    // The answer was lost, say: it is asked for again, and goes on from its first byte.
    let mut second = log_in(&host);
    let retry = Some(Retry { age_ms: 1000, incarnation: None });
    second.open(1, &OpenSpec { retry, ..wanted.clone() });
    assert_eq!(second.hear(1, has("two\n")).stdout, b"one\ntwo\n");
    drop(second);
    // And a third one from where it is, both ways.
    let mut third = log_in(&host);
    third.attach(1, &attach_from("j", 4));
    let attached = third.link.expect(Kind::Attached).json();
    assert_eq!((attached["stdin"].as_u64(), attached["job"].as_str()), (Some(4), Some("j")));
    third.link.send(&data(1, 0, 4, b"three\n"));
    let heard = third.finish(1);
    assert_eq!(heard.stdout, b"two\nthree\n");
    assert_eq!(heard.seal.unwrap()["end"]["code"], 7);
    // Whoever asks for it again is told how it ended; for something else with its id, that it is taken.
    third.open(3, &wanted);
    let heard = third.finish(3);
    assert_eq!((heard.first, heard.exit.unwrap()["end"]["code"].as_u64()), (14, Some(7)));
    third.open(5, &lasting("j", "true"));
    assert_eq!(third.link.expect(Kind::Refused).json()["reason"], "conflict");
    assert_eq!(std::fs::read_to_string(&starts).unwrap().lines().count(), 1);
}

#[test]
fn fault_66_a_second_owner_fences_the_first_and_a_watcher_disturbs_nobody() {
    // J-2.1, J-2.2
    let host = Host::start();
    let mut first = log_in(&host);
    let cat = OpenSpec { stdin: true, ..lasting("j", "echo up; exec cat") };
    first.open(1, &cat);
    first.hear(1, has("up\n"));
    let mut watcher = log_in(&host);
    watcher.attach(1, &watch("j"));
    watcher.hear(1, has("up\n"));
    // What a watcher says reaches nobody.
    watcher.link.send(&frame(Kind::Signal.to_byte(), 0, 1, b"{\"name\":\"KILL\"}"));
    let mut second = log_in(&host);
    second.attach(1, &attach_from("j", 3));
    second.link.expect(Kind::Attached);
    let reset = first.link.expect(Kind::Reset);
    assert!(reset.json()["message"].as_str().unwrap().contains("taken over"), "{reset:?}");
    first.link.send(&data(1, 0, 0, b"late\n"));
    first.say(Kind::Close, 1);
    second.link.send(&data(1, 0, 0, b"mine\n"));
    assert_eq!(second.hear(1, has("mine\n")).stdout, b"mine\n");
    watcher.hear(1, has("mine\n"));
    watcher.say(Kind::Close, 1);
    second.link.send(&frame(Kind::End.to_byte(), 0, 1, &5_u64.to_be_bytes()));
    assert_eq!(second.finish(1).seal.unwrap()["end"]["code"], 0);
}

#[test]
fn fault_51_what_a_goodbye_a_close_and_a_detach_do() {
    // J-2.3
    let host = Host::start();
    let goodbye = afar_e2e::raw::control(Kind::Goodbye, b"{\"code\":\"done\",\"message\":\"\"}");
    let detach = frame(Kind::Detach.to_byte(), 0, 1, b"");
    let close = frame(Kind::Close.to_byte(), 0, 1, b"");
    let keep = Some(OnDisconnect::Keep);
    let cases = [
        ("goodbye", None, &goodbye, true),
        ("goodbye-keep", keep, &goodbye, false),
        ("close", None, &close, true),
        ("close-keep", keep, &close, true),
        ("detach", None, &detach, false),
        ("detach-kill", Some(OnDisconnect::Kill), &detach, false),
    ];
    let mut asker = log_in(&host);
    for (index, (id, on_disconnect, said, cancels)) in cases.into_iter().enumerate() {
        let channel = u32::try_from(index).unwrap() * 4 + 1;
        let mut client = log_in(&host);
        client.open(1, &OpenSpec { on_disconnect, ..lasting(id, "echo up; exec sleep 300") });
        client.hear(1, has("up\n"));
        client.link.send(said);
        if said == &detach {
            drop(client);
        }
        if cancels {
            host.wait_until_idle();
        } else {
            // It runs, until somebody ends it.
            assert_eq!(list(&mut asker, channel)[id]["state"], "running", "{id}");
            let kill = KillQuery { job: job(id), prefix: false, signal: None };
            assert_eq!(asker.ask(channel + 2, &Query::Kill(kill)).json()["job"], id);
            host.wait_until_idle();
        }
    }
    let mut client = log_in(&host);
    for (index, (id, ..)) in cases.into_iter().enumerate() {
        let channel = u32::try_from(index).unwrap() * 2 + 1;
        client.attach(channel, &attach_from(id, 0));
        assert_eq!(client.finish(channel).seal.unwrap()["end"]["kind"], "cancelled", "{id}");
    }
}

#[test]
fn a_detached_job_is_answered_and_left_and_found_again_by_the_beginning_of_its_id() {
    let host = Host::start();
    let fifo = host.fifo("fifo");
    let script = format!("echo one; read x < {}; echo two; echo three; exit 4", fifo.word());
    let mut client = log_in(&host);
    client.open(1, &OpenSpec { detach: true, ..lasting("detached-1", &script) });
    assert_eq!(client.link.expect(Kind::Opened).json()["job"], "detached-1");
    client.open(3, &OpenSpec { detach: true, ..lasting("detached-2", "true") });
    client.link.expect(Kind::Opened);
    drop(client);
    let mut client = log_in(&host);
    client.attach(1, &Attach { prefix: true, ..watch("detached") });
    assert_eq!(client.link.expect(Kind::Refused).json()["reason"], "ambiguous");
    let listed = list(&mut client, 3);
    assert_eq!(
        (&listed["detached-1"]["state"], &listed["detached-1"]["detached"]),
        (&"running".into(), &true.into())
    );
    let running = Query::Remove(JobQuery { job: job("detached-1"), prefix: false });
    assert_eq!(client.ask(5, &running).json()["reason"], "running");
    client.attach(7, &Attach { prefix: true, ..watch("detached-1") });
    client.hear(7, has("one\n"));
    fifo.release();
    let heard = client.finish(7);
    assert_eq!(
        (heard.stdout.as_slice(), heard.seal.unwrap()["end"]["code"].as_u64()),
        (b"two\nthree\n".as_slice(), Some(4))
    );
    // Its output is kept, though it was told to somebody.
    let tail =
        Attach { start: Some(AttachStart::TailLines(1)), follow: false, ..watch("detached-1") };
    client.attach(9, &tail);
    assert_eq!(client.finish(9).stdout, b"three\n");
    let gone = Query::Remove(JobQuery { job: job("detached-1"), prefix: false });
    assert_eq!(client.ask(11, &gone).json()["job"], "detached-1");
    assert!(!list(&mut client, 13).contains_key("detached-1"));
    client.attach(15, &watch("detached-1"));
    assert_eq!(client.link.expect(Kind::Refused).json()["reason"], "no_such_job");
}

#[test]
fn fault_42_what_nobody_reads_is_kept_on_the_disk_and_told_to_whoever_asks() {
    // J-3.2, J-3.3, J-3.6, J-3.7
    let host = Host::start();
    let done = host.fifo("done");
    let script = format!("seq 1 400000; seq 1 10 >&2; echo > {}", done.word());
    let mut client = log_in(&host);
    client.open(1, &OpenSpec { detach: true, ..lasting("kept", &script) });
    client.link.expect(Kind::Opened);
    // One whose client is lost in the middle of it, and who had a part.
    client.open(3, &lasting("lost", &script));
    client.hear(3, |heard| heard.stdout.len() > 100_000);
    drop(client);
    for _ in 0..2 {
        assert_eq!(done.line(), "");
    }
    host.wait_until_idle();
    let all: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    let check = |channel: u32, client: &mut RawClient| {
        client.attach(channel, &watch("kept"));
        let heard = client.finish(channel);
        let seal = heard.seal.expect("it was waited for");
        assert!(heard.stdout == all.as_bytes(), "{} {:?}", heard.stdout.len(), heard.gaps);
        assert_eq!(seal["streams"]["stdout"]["bytes"], all.len());
        assert_eq!(seal["end"]["code"], 0);
    };
    let mut client = log_in(&host);
    check(1, &mut client);
    client.attach(3, &attach_from("lost", 50_000));
    let heard = client.hear(3, |heard| heard.seal.is_some());
    assert!(heard.stdout == all.as_bytes()[50_000..], "{} {:?}", heard.first, heard.gaps);
    drop(client);
    // Another supervisor has it still.
    let supervisor = host.supervisor().unwrap();
    supervisor.kill();
    supervisor.wait();
    let mut client = log_in(&host);
    check(1, &mut client);
    client.attach(3, &attach_from("lost", 390_000));
    let heard = client.finish(3);
    assert!(heard.stdout == all.as_bytes()[390_000..], "{} {:?}", heard.first, heard.gaps);
}

#[test]
fn what_a_supervisor_knows_outlives_it() {
    // J-1.4, J-1.6, J-1.7, fault 56
    let host = Host::start();
    let mut client = log_in(&host);
    client.open(1, &lasting("done", "exit 5"));
    assert_eq!(client.finish(1).seal.unwrap()["end"]["code"], 5);
    client.open(3, &lasting("going", "echo up; exec sleep 300"));
    client.hear(3, has("up\n"));
    let supervisor = host.supervisor().unwrap();
    supervisor.kill();
    supervisor.wait();
    host.wait_until_idle();
    let mut client = log_in(&host);
    // Ended is ended, with what was sealed; what was running is lost, and never started again.
    client.open(1, &lasting("done", "exit 5"));
    assert_eq!(client.finish(1).seal.unwrap()["end"]["code"], 5);
    client.open(3, &lasting("going", "echo up; exec sleep 300"));
    let refused = client.link.expect(Kind::Refused).json();
    assert_eq!((&refused["reason"], &refused["started"]), (&"no_such_job".into(), &"yes".into()));
    let listed = list(&mut client, 5);
    assert_eq!(listed["going"]["end"]["kind"], "lost");
    assert_eq!(listed["done"]["end"]["code"], 5);
    client.open(7, &lasting("new", "exit 6"));
    assert_eq!(client.finish(7).seal.unwrap()["end"]["code"], 6);
    drop(client);

    // Nobody remembers what was started before its journal was lost.
    let supervisor = host.supervisor().unwrap();
    supervisor.kill();
    supervisor.wait();
    let jobs = host.file("home/state/afar/jobs");
    std::fs::rename(&jobs, jobs.with_extension("lost")).unwrap();
    let mut client = log_in(&host);
    client.open(
        1,
        &OpenSpec {
            retry: Some(Retry { age_ms: 1000, incarnation: None }),
            ..lasting("new", "exit 6")
        },
    );
    let refused = client.link.expect(Kind::Refused).json();
    assert_eq!((&refused["reason"], &refused["started"]), (&"unknown".into(), &"unknown".into()));
}

#[test]
fn a_confined_key_sees_its_own_jobs_only() {
    // J-1.1
    let host = Host::start();
    let confined = host.make_key("confined");
    let lines = [
        Home::public_line(&host.key()),
        format!("command=\"echo up; sleep 300\" {}", Home::public_line(&confined)),
    ];
    host.write("authorized_keys", lines.concat());
    let mut own = log_in(&host);
    own.open(1, &lasting("j", "echo own; exec sleep 300"));
    own.hear(1, has("own\n"));
    let mut other = RawClient::log_in(host.address(), &Key::of_file(&confined), host.user());
    other.attach(1, &attach_from("j", 0));
    assert_eq!(other.link.expect(Kind::Refused).json()["reason"], "no_such_job");
    assert!(list(&mut other, 3).is_empty());
    other.open(5, &OpenSpec { on_disconnect: Some(OnDisconnect::Kill), ..lasting("k", "true") });
    other.hear(5, has("up\n"));
    assert_eq!(list(&mut other, 7).into_keys().collect::<Vec<_>>(), ["k"]);
    // The user's own keys see all.
    assert_eq!(list(&mut own, 3).into_keys().collect::<Vec<_>>(), ["j", "k"]);
    own.say(Kind::Close, 1);
}
