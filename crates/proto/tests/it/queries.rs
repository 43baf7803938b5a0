//! Questions about jobs and their answers.

use afar_proto::connection::OpenError;
use afar_proto::frame::Kind;
use afar_proto::limits::{
    ANSWER_BYTES_MAX, COMMAND_SHOWN_BYTES_MAX, CONTROL_PAYLOAD_BYTES_MAX, CWD_SHOWN_BYTES_MAX,
};
use afar_proto::message::{
    Answer, JobInfo, JobPage, JobQuery, JobState, KillQuery, ListQuery, Query,
};
use afar_proto::outcome::RefusalReason;
use afar_proto::{Event, Misbehaviour, Role, json};

use crate::rig::lone::{Lone, frame};
use crate::rig::pair::Pair;
use crate::rig::samples;

fn queries() -> [(Query, &'static str); 4] {
    let job = samples::job_id("j");
    [
        (Query::List(ListQuery::default()), r#"{"list":{}}"#),
        (
            Query::List(ListQuery {
                states: Some(vec![JobState::Running, JobState::Blocked]),
                job: Some(job.clone()),
                after: Some("x".into()),
                limit: Some(9),
            }),
            r#"{"list":{"states":["running","blocked"],"job":"j","after":"x","limit":9}}"#,
        ),
        (
            Query::Kill(KillQuery { job: job.clone(), prefix: true, signal: Some("INT".into()) }),
            r#"{"kill":{"job":"j","prefix":true,"signal":"INT"}}"#,
        ),
        (Query::Remove(JobQuery { job, prefix: false }), r#"{"remove":{"job":"j"}}"#),
    ]
}

/// W-5.11: the question as it was asked, and one answer or refusal that closes the channel.
#[test]
fn a_question_has_one_answer() {
    for (query, text) in queries() {
        assert_eq!(String::from_utf8(json::to_vec(&query)).unwrap(), text);
        for refuse in [false, true] {
            let mut pair = Pair::new();
            let channel = pair.client.query(&query).unwrap();
            pair.drive();
            assert_eq!(pair.server_events(), [Event::Query { channel, query: query.clone() }]);
            let answer = Answer::Done { job: samples::job_id("job-1") };
            let refused = samples::refused(RefusalReason::Ambiguous);
            let server = pair.server.channel(channel).unwrap();
            if refuse {
                server.refuse(&refused);
            } else {
                server.answer(&answer);
            }
            assert!(pair.server.channel(channel).is_none());
            pair.drive();
            let expected = if refuse {
                Event::Refused { channel, refused }
            } else {
                Event::Answer { channel, answer: Box::new(answer) }
            };
            assert_eq!(pair.client_events(), [expected]);
            assert_eq!(pair.client.channels_open(), 0);
        }
    }
}

/// W-5.11: a question is not answered like a job, and nothing else can be said about it.
#[test]
fn the_channel_of_a_question_is_for_its_answer_only() {
    let mut pair = Pair::new();
    let channel = pair.client.query(&queries()[0].0).unwrap();
    pair.drive();
    let mut server = pair.server.channel(channel).unwrap();
    server.accept(&samples::opened("job"));
    server.accept_attach(&samples::attached(0, 0, None));
    server.exit(&samples::exited(0));
    pair.drive();
    assert_eq!(pair.client_events(), []);
    assert_eq!(
        pair.client.channel(channel).unwrap().writable(afar_proto::connection::Stream::Stdin),
        0
    );
    pair.client.channel(channel).unwrap().close();
    pair.drive();
    assert!(matches!(pair.server_events().last(), Some(Event::Abandoned { .. })));
}

/// W-5.11: what is no question is refused, and the connection goes on.
#[test]
fn fault_24_a_question_that_is_not_strict_is_refused() {
    let wrong = [
        r#"{"list":{},"list":{}}"#,
        r#"{"list":{},"kill":{"job":"j"}}"#,
        r#"{}"#,
        r#"{"dance":{}}"#,
        r#"{"kill":{"job":"no spaces"}}"#,
        r#"{"list":{"states":["dancing"]}}"#,
    ];
    for text in wrong {
        let mut lone = Lone::new(Role::Server);
        lone.input(&frame(Kind::Query, 0, 1, text.as_bytes()));
        assert_eq!(lone.events(), [], "{text}");
        assert_eq!(lone.sent_kinds(), [Kind::Refused], "{text}");
        lone.assert_open();
    }
}

/// W-3.2: only a client asks, and a question is one frame, not in the middle of another request.
#[test]
fn fault_11_a_server_asks_nothing() {
    let mut lone = Lone::new(Role::Server);
    assert_eq!(lone.connection.query(&queries()[0].0), Err(OpenError::WrongRole));
    let mut lone = Lone::new(Role::Server);
    lone.input(&frame(Kind::Open, 1, 1, b"{"));
    lone.input(&frame(Kind::Query, 0, 1, br#"{"list":{}}"#));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::BadOpen(_)));
}

/// W-9.27: jobs whose every string is as long and as awkward as can be still make a page that fits,
/// and the one that does not fit any more is given back.
#[test]
fn a_page_takes_as_many_jobs_as_fit_its_frame() {
    let id = samples::job_id(&"x".repeat(64));
    let mut info = JobInfo::new(id, JobState::Ended, &[1; 70_000]);
    info.set_cwd(&[2; 70_000]);
    assert!(info.command_cut);
    assert_eq!(info.command.as_bytes().len(), COMMAND_SHOWN_BYTES_MAX);
    assert_eq!(info.cwd.as_ref().unwrap().as_bytes().len(), CWD_SHOWN_BYTES_MAX);
    let mut page = JobPage::default();
    let mut bytes = 0;
    let rest = loop {
        if let Err(rest) = page.push(&mut bytes, info.clone()) {
            break rest;
        }
    };
    assert_eq!(*rest, info);
    assert!(!page.jobs.is_empty(), "one job always fits");
    page.next = Some("n".repeat(512));
    let payload = json::to_vec(&Answer::Page(page));
    assert!(payload.len() > ANSWER_BYTES_MAX / 2);
    assert!(payload.len() <= CONTROL_PAYLOAD_BYTES_MAX as usize);
}

/// W-9.27: at the limit nothing is cut, and text is cut at a character.
#[test]
fn a_command_is_cut_at_its_limit_and_at_a_character() {
    let job = samples::job_id("j");
    let whole = JobInfo::new(job.clone(), JobState::Running, &[b'a'; COMMAND_SHOWN_BYTES_MAX]);
    assert!(!whole.command_cut);
    let long = "ä".repeat(COMMAND_SHOWN_BYTES_MAX);
    let odd = format!("a{long}");
    for (text, length) in [(&long, COMMAND_SHOWN_BYTES_MAX), (&odd, COMMAND_SHOWN_BYTES_MAX - 1)] {
        let info = JobInfo::new(job.clone(), JobState::Running, text.as_bytes());
        assert!(info.command_cut);
        assert_eq!(info.command.as_bytes().len(), length);
        assert!(std::str::from_utf8(info.command.as_bytes()).is_ok());
    }
}
