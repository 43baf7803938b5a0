//! The ephemeral keys that accepted keys have vouched for (`W-4.9`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use afar_core::key::PublicKeyBlob;
use afar_core::policy::Restrictions;
use afar_net::signature::FidoAssertion;
use tokio::time::Instant;

use super::trust::{Refusal, check_token};

/// For how long an ephemeral key may stand in for the key that vouched for it.
pub const DELEGATION_LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The same for a key of a FIDO token that has to be touched, or to verify its user, each time: as long as
/// a client tries to come back (`--reconnect-for`) unless it is told otherwise.
pub const DELEGATION_PRESENT_LIFETIME_MAX: Duration = Duration::from_secs(10 * 60);

/// Ephemeral keys that are remembered at once; the one that ends first goes when there are more.
pub const DELEGATIONS_MAX: usize = 4096;

/// Those of one user, so that nobody pushes another's out.
pub const DELEGATIONS_PER_USER_MAX: usize = 64;

/// What is remembered, in memory only.
#[derive(Debug, Default)]
pub(super) struct Delegations(Mutex<BTreeMap<Delegated, Delegation>>);

/// A user and an ephemeral key that may stand in for one of that user's keys.
type Delegated = (String, Vec<u8>);

#[derive(Debug)]
struct Delegation {
    voucher: Voucher,
    until: Instant,
}

/// What an ephemeral key stands in for. Its grant is looked up anew whenever it is used, so that a
/// key that was removed takes its ephemeral keys with it.
#[derive(Clone, Debug)]
pub(super) struct Voucher {
    /// The key that vouched.
    pub(super) key: PublicKeyBlob,
    /// What its token said of its user then; `None` for a key that is in no token.
    assertion: Option<FidoAssertion>,
    since: Instant,
}

impl Voucher {
    /// A key that has just signed.
    pub(super) fn new(key: PublicKeyBlob, assertion: Option<FidoAssertion>) -> Self {
        Self { key, assertion, since: Instant::now() }
    }

    /// Whether it may still be stood in for, if this is what its line says now.
    pub(super) fn check(&self, restrictions: &Restrictions) -> Result<(), Refusal> {
        check_token(self.assertion, restrictions)?;
        if self.since.elapsed() >= self.lifetime_max(restrictions) {
            return Err("its token has to be used again (W-4.9)".to_owned());
        }
        Ok(())
    }

    fn lifetime_max(&self, restrictions: &Restrictions) -> Duration {
        let wants_user = restrictions.touch_required || restrictions.verify_required;
        if self.assertion.is_some() && wants_user {
            DELEGATION_PRESENT_LIFETIME_MAX
        } else {
            DELEGATION_LIFETIME_MAX
        }
    }
}

impl Delegations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Delegated, Delegation>> {
        // The map is whole after every statement, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who vouched for this ephemeral key.
    pub(super) fn voucher(&self, user: &str, key: &[u8]) -> Option<Voucher> {
        let now = Instant::now();
        let mut delegations = self.lock();
        delegations.retain(|_, delegation| delegation.until > now);
        let delegated = (user.to_owned(), key.to_vec());
        delegations.get(&delegated).map(|delegation| delegation.voucher.clone())
    }

    /// Remembers an ephemeral key for so many seconds, or as many as there may be under these
    /// restrictions; `None` if not at all.
    pub(super) fn delegate(
        &self,
        user: &str,
        (ephemeral, lifetime_s): (&[u8], u32),
        voucher: Voucher,
        restrictions: &Restrictions,
    ) -> Option<u32> {
        let ephemeral = PublicKeyBlob::from_wire(ephemeral.to_vec()).ok()?;
        if ephemeral.algorithm() != "ssh-ed25519" || lifetime_s == 0 {
            return None;
        }
        let delegated = (user.to_owned(), ephemeral.into_bytes());
        let lifetime_max = voucher.lifetime_max(restrictions);
        let lifetime = Duration::from_secs(lifetime_s.into()).min(lifetime_max);
        let until = voucher.since + lifetime;
        let mut delegations = self.lock();
        // Nobody has proved to hold the ephemeral key: one that another key vouched for stays that
        // one's, or a restricted key could put its own restrictions on it.
        if delegations.get(&delegated).is_some_and(|found| found.voucher.key != voucher.key) {
            return None;
        }
        let of_user = delegations.keys().filter(|(name, _)| name == user).count();
        let full = delegations.len() >= DELEGATIONS_MAX || of_user >= DELEGATIONS_PER_USER_MAX;
        if full && !delegations.contains_key(&delegated) {
            let own_first = of_user > 0;
            let going = delegations.iter().filter(|((name, _), _)| !own_first || name == user);
            let first = going.min_by_key(|(_, d)| d.until).map(|(k, _)| k.clone());
            first.and_then(|first| delegations.remove(&first));
        }
        delegations.insert(delegated, Delegation { voucher, until });
        u32::try_from(lifetime.as_secs()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key of this number, whose other half nobody has.
    fn blob(number: usize) -> PublicKeyBlob {
        let mut wire = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
        wire.extend(u32::try_from(number).unwrap().to_be_bytes().repeat(8));
        PublicKeyBlob::from_wire(wire).unwrap()
    }

    impl Delegations {
        fn by(&self, user: &str, wanted: (&[u8], u32), key: &PublicKeyBlob) -> Option<u32> {
            let voucher = Voucher::new(key.clone(), None);
            self.delegate(user, wanted, voucher, &Restrictions::default())
        }

        fn key_for(&self, user: &str, ephemeral: &PublicKeyBlob) -> Option<PublicKeyBlob> {
            self.voucher(user, ephemeral.as_bytes()).map(|voucher| voucher.key)
        }
    }

    fn day_s() -> u32 {
        u32::try_from(DELEGATION_LIFETIME_MAX.as_secs()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_ephemeral_key_stands_in_for_its_key_for_a_bounded_time_only() {
        let delegations = Delegations::default();
        let (key, ephemeral) = (blob(1), blob(2));
        assert_eq!(delegations.key_for("ann", &ephemeral), None);
        let wanted = (ephemeral.as_bytes(), u32::MAX);
        assert_eq!(delegations.by("ann", wanted, &key), Some(day_s()));
        assert_eq!(delegations.key_for("ann", &ephemeral), Some(key.clone()));
        assert_eq!(delegations.by("ann", (ephemeral.as_bytes(), 0), &key), None);
        assert_eq!(delegations.by("ann", (b"no key", 60), &key), None);
        tokio::time::advance(DELEGATION_LIFETIME_MAX - Duration::from_secs(1)).await;
        assert!(delegations.key_for("ann", &ephemeral).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(delegations.key_for("ann", &ephemeral), None);
    }

    /// W-4.9
    #[tokio::test(start_paused = true)]
    async fn a_token_that_must_be_touched_is_stood_in_for_no_longer_than_a_client_comes_back() {
        let delegations = Delegations::default();
        let (key, ephemeral) = (blob(1), blob(2));
        let touched = Some(FidoAssertion { user_present: true, user_verified: false });
        let touch = Restrictions { touch_required: true, ..Restrictions::default() };
        let verify = Restrictions { verify_required: true, ..Restrictions::default() };
        let free = Restrictions { touch_required: false, ..Restrictions::default() };
        let delegate = |assertion, restrictions: &Restrictions| {
            let voucher = Voucher::new(key.clone(), assertion);
            delegations.delegate("ann", (ephemeral.as_bytes(), u32::MAX), voucher, restrictions)
        };
        let short = u32::try_from(DELEGATION_PRESENT_LIFETIME_MAX.as_secs()).unwrap();
        assert_eq!(delegate(touched, &verify), Some(short));
        assert_eq!(delegate(touched, &touch), Some(short));
        tokio::time::advance(DELEGATION_PRESENT_LIFETIME_MAX - Duration::from_secs(1)).await;
        let voucher = delegations.voucher("ann", ephemeral.as_bytes()).unwrap();
        assert!(voucher.check(&touch).is_ok());
        // What its token did not say then it has not said.
        assert!(voucher.check(&verify).unwrap_err().contains("verify-required"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(delegations.voucher("ann", ephemeral.as_bytes()).is_none());

        // The line decides, and it counts as it is when the ephemeral key is used.
        assert_eq!(delegate(touched, &free), Some(day_s()));
        tokio::time::advance(DELEGATION_PRESENT_LIFETIME_MAX).await;
        let voucher = delegations.voucher("ann", ephemeral.as_bytes()).unwrap();
        assert!(voucher.check(&free).is_ok());
        assert!(voucher.check(&touch).unwrap_err().contains("used again"));
        // A key that is in no token has nothing to be touched.
        assert_eq!(delegate(None, &touch), Some(day_s()));
        tokio::time::advance(DELEGATION_PRESENT_LIFETIME_MAX).await;
        assert!(delegations.voucher("ann", ephemeral.as_bytes()).unwrap().check(&touch).is_ok());
    }

    #[test]
    fn an_ephemeral_key_is_good_for_the_user_whose_key_vouched_for_it_only() {
        let delegations = Delegations::default();
        let (key, ephemeral) = (blob(1), blob(2));
        assert_eq!(delegations.by("ann", (ephemeral.as_bytes(), 60), &key), Some(60));
        assert_eq!(delegations.key_for("bob", &ephemeral), None);
        assert_eq!(delegations.key_for("ann", &ephemeral), Some(key));
    }

    #[test]
    fn an_ephemeral_key_stays_that_of_the_key_which_vouched_for_it_first() {
        let delegations = Delegations::default();
        let (first, second, ephemeral) = (blob(1), blob(2), blob(3));
        assert_eq!(delegations.by("ann", (ephemeral.as_bytes(), 60), &first), Some(60));
        assert_eq!(delegations.by("ann", (ephemeral.as_bytes(), 60), &second), None);
        assert_eq!(delegations.by("ann", (ephemeral.as_bytes(), 90), &first), Some(90));
        assert_eq!(delegations.key_for("ann", &ephemeral), Some(first));
    }

    #[test]
    fn ephemeral_keys_are_bounded_in_number_for_each_user_and_in_all() {
        let delegations = Delegations::default();
        let delegate = |name: &str, number, lifetime_s| {
            let key = blob(number);
            assert!(delegations.by(name, (key.as_bytes(), lifetime_s), &key).is_some());
        };
        // Ann's ends first of all, and stays: whoever asks for too many loses his own.
        delegate("ann", 0, 10);
        for number in 0..=DELEGATIONS_PER_USER_MAX {
            delegate("bob", number, 60);
        }
        assert_eq!(delegations.lock().len(), 1 + DELEGATIONS_PER_USER_MAX);
        assert!(delegations.key_for("ann", &blob(0)).is_some());
        assert!(delegations.key_for("bob", &blob(0)).is_none());
        assert!(delegations.key_for("bob", &blob(1)).is_some());
        for number in 0..=DELEGATIONS_MAX {
            delegate(&format!("user {}", number / DELEGATIONS_PER_USER_MAX), number, 60);
        }
        assert_eq!(delegations.lock().len(), DELEGATIONS_MAX);
    }
}
