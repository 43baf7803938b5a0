//! Tests of how long a supervisor waits for others, in simulated time (`W-9.24`).

use std::rc::Rc;
use std::time::Duration;

use afar_core::policy::Grant;
use afar_proto::frame::{Frame, Kind};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::{Introduction, Stay, Supervisor, Why, admit, stop};
use crate::limits::{GRANT_DEADLINE, STOP_KILL_PATIENCE, STOP_TIMEOUT};
use crate::log::Log;

/// As close to a deadline as is tested.
const MOMENT: Duration = Duration::from_millis(2);

fn supervisor() -> Rc<Supervisor> {
    let user = afar_sys::users::current_user().unwrap().unwrap();
    Rc::new(Supervisor::new(user, None, Log::default()))
}

#[tokio::test(start_paused = true)]
async fn whoever_connects_has_so_long_to_say_whom_it_brings() {
    let supervisor = supervisor();
    let user = &supervisor.user;
    let grant = Grant::local(user.name.to_str().unwrap(), user.uid);
    let grant = Frame::control(Kind::Grant, grant.encode()).to_bytes();
    let (first, last) = grant.split_at(grant.len() - 1);

    // All but the last byte comes at once.
    let began = Instant::now();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(first).await.unwrap();
    assert_eq!(admit(&supervisor, theirs).await.unwrap_err(), "it sent no grant");
    let waited = began.elapsed();
    assert!(waited >= GRANT_DEADLINE && waited < GRANT_DEADLINE + MOMENT, "{waited:?}");

    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(first).await.unwrap();
    let in_time = async {
        sleep(GRANT_DEADLINE - MOMENT).await;
        ours.write_all(last).await.unwrap();
    };
    let (admitted, ()) = tokio::join!(admit(&supervisor, theirs), in_time);
    let Ok(Introduction::Client(client)) = admitted else { panic!("{admitted:?}") };
    assert_eq!(client.grant.uid, user.uid);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_is_told_to_end_waits_so_long_for_its_jobs() {
    let local = tokio::task::LocalSet::new();
    let stopped = async {
        // What is killed then has a little more time to go.
        let at_most = STOP_TIMEOUT + STOP_KILL_PATIENCE;
        for (leaves_after, waits) in
            [(at_most - MOMENT, at_most - MOMENT), (at_most + MOMENT, at_most)]
        {
            let supervisor = supervisor();
            let job = Stay::new(&supervisor, Why::Running);
            tokio::task::spawn_local(async move {
                sleep(leaves_after).await;
                drop(job);
            });
            let began = Instant::now();
            stop(&supervisor, None).await;
            let waited = began.elapsed();
            assert!(waited >= waits && waited < waits + MOMENT, "{waited:?} for {leaves_after:?}");
        }
    };
    local.run_until(stopped).await;
}
