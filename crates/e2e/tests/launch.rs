//! The supervisor is started on demand, once, whoever asks for it and how many at a time.

use std::collections::BTreeSet;

use afar_e2e::Host;

#[test]
fn many_first_clients_at_once_share_one_supervisor() {
    // The one that loses the race for the lock must wait for the winner to listen, not give up.
    for _ in 0..5 {
        let host = Host::start();
        let runs: Vec<_> = (0..8).map(|_| host.script("echo $PPID").spawn()).collect();
        let parents: BTreeSet<String> =
            runs.into_iter().map(|run| run.wait().success().text().to_owned()).collect();
        assert_eq!(parents.len(), 1, "{parents:?}\n{}", host.log());
    }
}
