//! Who may knock, and when: each address's share of a listener's unauthenticated connections, and
//! the pace of an address that keeps failing (`W-4.11`).
//!
//! sshd's `PerSourcePenalties` is the model: what an address does wrong adds to its penalty, which
//! decays as time passes. sshd then turns everything from that address away, for up to ten minutes,
//! and with it whoever else is behind the same gateway, or on the same machine. Here such an address
//! is served at a slow pace, so that guessing is slow and a good key still gets in, after a wait
//! that is bounded.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use afar_proto::Instant;

use crate::authorized_keys::SourceList;
use crate::limits::{
    OVERLONG_PENALTY, PACE, PACED_WAIT_MAX, PENALISED_MAX, PENALTY_FREE, PENALTY_MAX,
    REFUSED_PENALTY, UNAUTHENTICATED_MAX, UNAUTHENTICATED_SHARE_MAX, UNFINISHED_PENALTY,
};

/// What a doorkeeper goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorRules {
    /// Addresses that get no penalties; their share is that of others all the same.
    pub exempt: Option<SourceList>,
    /// Unauthenticated connections, of all addresses; at most [`UNAUTHENTICATED_MAX`].
    pub unauthenticated_max: usize,
    /// Those of one address.
    pub share_max: usize,
}

impl Default for DoorRules {
    fn default() -> Self {
        Self {
            exempt: None,
            unauthenticated_max: UNAUTHENTICATED_MAX,
            share_max: UNAUTHENTICATED_SHARE_MAX,
        }
    }
}

/// Counts unauthenticated connections and remembers what their addresses did.
#[derive(Debug, Default)]
pub struct Doorkeeper {
    rules: DoorRules,
    origins: BTreeMap<Origin, Standing>,
    inside: usize,
}

/// How a connection ceased to be unauthenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Its login succeeded.
    LoggedIn,
    /// Its login was refused, or none of the keys that it asked about is accepted.
    Refused,
    /// Nobody could tell whether to let it in, for a reason that is not its own.
    Unjudged,
    /// It ended, or broke the protocol, before it had asked for anything.
    Unfinished,
    /// It used up the time that it was given.
    Overlong,
}

/// Why a connection is closed unheard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnedAway {
    /// There are too many of them, of all addresses.
    #[error("too many unauthenticated connections")]
    Full,
    /// There are too many of its address.
    #[error("too many unauthenticated connections from its address")]
    ShareTaken,
    /// Its address is served at a slow pace, and too many wait already.
    #[error("its address has failed too often, and too many of its connections wait")]
    TooManyWait,
}

/// Addresses that count as one: whoever has one of them has the others for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Origin(IpAddr);

impl Origin {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) if address.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) if address.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            // A network gives its user at least a /64.
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
        })
    }
}

/// What is known of an origin. One without connections and penalty is forgotten.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    inside: usize,
    /// When its penalty will have decayed: the penalty is the time from now to then.
    clean_at: Instant,
    /// The earliest start of its next connection while it is penalised.
    next_start: Instant,
}

impl Standing {
    fn penalty(&self, now: Instant) -> Duration {
        self.clean_at.since(now)
    }
}

impl Doorkeeper {
    /// A doorkeeper that goes by these rules.
    #[must_use]
    pub fn new(rules: DoorRules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// From now on other rules hold. What is known of an address, and who is inside, stays.
    pub fn set_rules(&mut self, rules: DoorRules) {
        self.rules = rules;
    }

    /// A connection has come: it may be served from the time that is returned on, and counts until
    /// [`Doorkeeper::leave`] is called for it.
    ///
    /// # Errors
    /// It is to be closed, and does not count.
    pub fn arrive(&mut self, now: Instant, source: IpAddr) -> Result<Instant, TurnedAway> {
        if self.inside >= self.rules.unauthenticated_max.min(UNAUTHENTICATED_MAX) {
            return Err(TurnedAway::Full);
        }
        let origin = Origin::of(source);
        let mut standing = self.origins.get(&origin).copied().unwrap_or_default();
        if standing.inside >= self.rules.share_max {
            return Err(TurnedAway::ShareTaken);
        }
        let mut start = now;
        if standing.penalty(now) > PENALTY_FREE {
            start = start.max(standing.next_start);
            if start.since(now) > PACED_WAIT_MAX {
                return Err(TurnedAway::TooManyWait);
            }
            standing.next_start = start.after(PACE);
        }
        standing.inside += 1;
        self.inside += 1;
        self.remember(now, origin, standing);
        Ok(start)
    }

    /// A connection that has arrived is authenticated, or gone.
    pub fn leave(&mut self, now: Instant, source: IpAddr, departure: Departure) {
        let origin = Origin::of(source);
        let mut standing = self.origins.get(&origin).copied().unwrap_or_default();
        standing.inside = standing.inside.saturating_sub(1);
        self.inside = self.inside.saturating_sub(1);
        let before = standing.penalty(now);
        let penalty = match departure {
            _ if self.is_exempt(source) => Duration::ZERO,
            Departure::LoggedIn => before.saturating_sub(REFUSED_PENALTY),
            Departure::Refused => before.saturating_add(REFUSED_PENALTY),
            Departure::Unjudged => before,
            Departure::Unfinished => before.saturating_add(UNFINISHED_PENALTY),
            Departure::Overlong => before.saturating_add(OVERLONG_PENALTY),
        };
        standing.clean_at = now.after(penalty.min(PENALTY_MAX));
        self.remember(now, origin, standing);
    }

    fn is_exempt(&self, source: IpAddr) -> bool {
        self.rules.exempt.as_ref().is_some_and(|exempt| exempt.permits(source))
    }

    fn remember(&mut self, now: Instant, origin: Origin, standing: Standing) {
        if standing.inside == 0 && standing.penalty(now).is_zero() {
            self.origins.remove(&origin);
            return;
        }
        if self.origins.len() >= PENALISED_MAX && !self.origins.contains_key(&origin) {
            self.forget_one(now);
        }
        self.origins.insert(origin, standing);
    }

    /// Makes room for another origin: those with a connection stay, and there are fewer of them
    /// than room.
    fn forget_one(&mut self, now: Instant) {
        const { assert!(UNAUTHENTICATED_MAX < PENALISED_MAX) };
        self.origins.retain(|_, standing| standing.inside > 0 || !standing.penalty(now).is_zero());
        if self.origins.len() < PENALISED_MAX {
            return;
        }
        let idle = self.origins.iter().filter(|(_, standing)| standing.inside == 0);
        let lowest = idle.min_by_key(|(_, standing)| standing.clean_at).map(|(origin, _)| *origin);
        lowest.and_then(|origin| self.origins.remove(&origin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUESSER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn at(seconds: u64) -> Instant {
        Instant::ZERO.after(Duration::from_secs(seconds))
    }

    /// An address that numbers make, one that counts by itself.
    fn address(number: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap() + (10 << 24)))
    }

    /// Fails so many logins at one moment.
    fn fail(door: &mut Doorkeeper, now: Instant, source: IpAddr, times: usize) {
        for _ in 0..times {
            door.arrive(now, source).unwrap();
            door.leave(now, source, Departure::Refused);
        }
    }

    /// Refused logins in a burst that change nothing yet.
    fn free_failures() -> usize {
        usize::try_from(PENALTY_FREE.as_secs() / REFUSED_PENALTY.as_secs()).unwrap()
    }

    #[test]
    fn fault_82_guessing_from_one_address_is_slowed_and_others_are_not() {
        // One address guesses for ten minutes, as fast as it is let in, on up to 20 connections.
        let mut door = Doorkeeper::default();
        let (mut guesses, mut waiting) = (0, Vec::new());
        for tenth in 0..6_000 {
            let now = Instant::from_micros(tenth * 100_000);
            waiting.retain(|start| {
                if *start <= now {
                    door.leave(now, GUESSER, Departure::Refused);
                    guesses += 1;
                }
                *start > now
            });
            while waiting.len() < 20
                && let Ok(start) = door.arrive(now, GUESSER)
            {
                waiting.push(start);
            }
            // Somebody else is served at once, always.
            assert_eq!(door.arrive(now, OTHER), Ok(now));
            door.leave(now, OTHER, Departure::LoggedIn);
        }
        // The burst, and then one a second.
        assert!((600..700).contains(&guesses), "{guesses} guesses in ten minutes");
    }

    #[test]
    fn fault_82_a_good_key_at_a_penalised_address_waits_for_a_bounded_time() {
        let mut door = Doorkeeper::default();
        fail(&mut door, at(0), GUESSER, free_failures() + 1);
        // The line is full of guesses.
        let mut starts = Vec::new();
        let refused = loop {
            match door.arrive(at(0), GUESSER) {
                Ok(start) => starts.push(start),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, TurnedAway::TooManyWait);
        assert_eq!(starts.first(), Some(&at(0)));
        assert_eq!(starts.last().unwrap().since(at(0)), PACED_WAIT_MAX);
        // A second later there is a place in it again, at its end.
        assert_eq!(door.arrive(at(1), GUESSER), Ok(at(1).after(PACED_WAIT_MAX)));
        assert_eq!(door.arrive(at(1), GUESSER), Err(TurnedAway::TooManyWait));
    }

    #[test]
    fn fault_82_penalties_grow_to_a_limit_and_decay() {
        let mut door = Doorkeeper::default();
        fail(&mut door, at(0), GUESSER, free_failures());
        // Within what is free: served at once, twice in a moment.
        assert_eq!(door.arrive(at(0), GUESSER), Ok(at(0)));
        assert_eq!(door.arrive(at(0), GUESSER), Ok(at(0)));
        door.leave(at(0), GUESSER, Departure::Refused);
        door.leave(at(0), GUESSER, Departure::Refused);
        // One over it: the next one but one has to wait.
        assert_eq!(door.arrive(at(0), GUESSER), Ok(at(0)));
        assert_eq!(door.arrive(at(0), GUESSER), Ok(at(0).after(PACE)));
        for _ in 0..1000 {
            door.leave(at(0), GUESSER, Departure::Overlong);
        }
        let standing = door.origins.values().next().unwrap();
        assert_eq!(standing.penalty(at(0)), PENALTY_MAX);
        // It decays, and is forgotten.
        let free_again = at(0).after(PENALTY_MAX - PENALTY_FREE);
        assert_eq!(door.arrive(free_again, GUESSER), Ok(free_again));
        assert_eq!(door.arrive(free_again, GUESSER), Ok(free_again));
        let clean = at(0).after(PENALTY_MAX + REFUSED_PENALTY);
        door.leave(clean, GUESSER, Departure::LoggedIn);
        door.leave(clean, GUESSER, Departure::LoggedIn);
        assert!(door.origins.is_empty());
    }

    #[test]
    fn what_ends_before_it_asks_costs_little_and_logging_in_takes_off_what_a_refusal_adds() {
        let mut door = Doorkeeper::default();
        let penalty = |door: &Doorkeeper| door.origins.values().next().map(|s| s.penalty(at(0)));
        for (departure, expected) in [
            (Departure::Unfinished, Some(UNFINISHED_PENALTY)),
            (Departure::Refused, Some(UNFINISHED_PENALTY + REFUSED_PENALTY)),
            (Departure::Unjudged, Some(UNFINISHED_PENALTY + REFUSED_PENALTY)),
            (Departure::LoggedIn, Some(UNFINISHED_PENALTY)),
            (Departure::LoggedIn, None),
        ] {
            door.arrive(at(0), GUESSER).unwrap();
            door.leave(at(0), GUESSER, departure);
            assert_eq!(penalty(&door), expected, "{departure:?}");
        }
    }

    #[test]
    fn an_exempt_address_gets_no_penalty() {
        let mut door = Doorkeeper::new(DoorRules {
            exempt: Some(SourceList::parse(b"192.0.2.1").unwrap()),
            ..DoorRules::default()
        });
        fail(&mut door, at(0), GUESSER, 10 * free_failures());
        assert!(door.origins.is_empty());
        fail(&mut door, at(0), OTHER, 1);
        assert_eq!(door.origins.len(), 1);
    }

    #[test]
    fn fault_82_an_address_has_its_share_and_all_have_the_whole() {
        let mut door = Doorkeeper::default();
        for _ in 0..UNAUTHENTICATED_SHARE_MAX {
            assert_eq!(door.arrive(at(0), GUESSER), Ok(at(0)));
        }
        assert_eq!(door.arrive(at(0), GUESSER), Err(TurnedAway::ShareTaken));
        for number in UNAUTHENTICATED_SHARE_MAX..UNAUTHENTICATED_MAX {
            assert_eq!(door.arrive(at(0), address(number)), Ok(at(0)));
        }
        assert_eq!(door.arrive(at(0), OTHER), Err(TurnedAway::Full));
        door.leave(at(0), GUESSER, Departure::LoggedIn);
        assert_eq!(door.arrive(at(0), OTHER), Ok(at(0)));
    }

    #[test]
    fn addresses_that_one_holder_has_count_as_one() {
        let origin = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(origin("2001:db8:1:2::3"), origin("2001:db8:1:2:ffff::"));
        assert_ne!(origin("2001:db8:1:2::3"), origin("2001:db8:1:3::3"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("127.0.0.1"), origin("127.9.9.9"));
        assert_eq!(origin("127.0.0.1"), origin("::1"));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_worst() {
        let mut door = Doorkeeper::default();
        fail(&mut door, at(0), GUESSER, 10);
        assert_eq!(door.arrive(at(0), OTHER), Ok(at(0)));
        for number in 0..PENALISED_MAX + 100 {
            fail(&mut door, at(0), address(number), 1);
            assert!(door.origins.len() <= PENALISED_MAX);
        }
        assert_eq!(door.origins.len(), PENALISED_MAX);
        assert!(door.origins.contains_key(&Origin::of(GUESSER)));
        assert!(door.origins.contains_key(&Origin::of(OTHER)), "it has a connection");
    }

    #[test]
    fn other_rules_hold_from_then_on_and_for_who_is_inside() {
        let rules = |unauthenticated_max, share_max| DoorRules {
            unauthenticated_max,
            share_max,
            ..DoorRules::default()
        };
        let mut door = Doorkeeper::new(rules(3, 2));
        let now = Instant::default();
        let address = |number: u8| IpAddr::from([192, 0, 2, number]);
        assert!(door.arrive(now, address(1)).is_ok());
        assert!(door.arrive(now, address(1)).is_ok());
        assert_eq!(door.arrive(now, address(1)), Err(TurnedAway::ShareTaken));
        assert!(door.arrive(now, address(2)).is_ok());
        assert_eq!(door.arrive(now, address(3)), Err(TurnedAway::Full));
        door.set_rules(rules(4, 1));
        assert!(door.arrive(now, address(3)).is_ok());
        assert_eq!(door.arrive(now, address(4)), Err(TurnedAway::Full));
        door.leave(now, address(1), Departure::LoggedIn);
        assert_eq!(door.arrive(now, address(1)), Err(TurnedAway::ShareTaken));
        // No rule goes beyond what the protocol promises.
        door.set_rules(rules(usize::MAX, usize::MAX));
        while door.arrive(now, address(5)).is_ok() {}
        assert_eq!(door.inside, UNAUTHENTICATED_MAX);
    }
}
