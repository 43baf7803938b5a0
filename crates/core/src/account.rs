//! Which accounts of a machine may come in: the rules of sshd that are about accounts, not keys.
//!
//! They are those that sshd has without PAM (sshd_config(5), shadow(5)); where they differ, the items
//! here say so.

use std::net::IpAddr;
use std::str::FromStr;

use crate::authorized_keys::SourceList;
use crate::escape::escape_bounded;
use crate::pattern::{self, Case};
use crate::policy::Restrictions;

/// What the server's owner says about accounts. The default lets every account in that the system
/// itself does not keep out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountRules {
    /// `AllowUsers`: if there are any, only they.
    pub allow_users: Vec<UserPattern>,
    /// `DenyUsers`: none of them, whatever allows them.
    pub deny_users: Vec<UserPattern>,
    /// `AllowGroups`: if there are any, only who is in one of them.
    pub allow_groups: Vec<String>,
    /// `DenyGroups`: none who is in one of them, whatever allows them.
    pub deny_groups: Vec<String>,
    /// `PermitRootLogin`.
    pub permit_root: PermitRoot,
}

/// Whether the superuser may come in (sshd_config(5), `PermitRootLogin`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PermitRoot {
    /// As everybody. There are no passwords here, so it is the same as the default.
    Yes,
    /// With keys, which is the only way there is.
    #[default]
    ProhibitPassword,
    /// With keys that have a `command=`.
    ForcedCommandsOnly,
    /// Not at all.
    No,
}

impl PermitRoot {
    /// How it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::ProhibitPassword => "prohibit-password",
            Self::ForcedCommandsOnly => "forced-commands-only",
            Self::No => "no",
        }
    }
}

impl FromStr for PermitRoot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "yes" => Ok(Self::Yes),
            "prohibit-password" | "without-password" => Ok(Self::ProhibitPassword),
            "forced-commands-only" => Ok(Self::ForcedCommandsOnly),
            "no" => Ok(Self::No),
            _ => Err("yes, prohibit-password, forced-commands-only or no".to_owned()),
        }
    }
}

/// `USER` or `USER@ADDRESS`, both with `*` and `?`; the address may be a network in CIDR notation.
/// Afar looks up no names of clients, so an address is never a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPattern {
    user: String,
    source: Option<SourceList>,
}

impl FromStr for UserPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, source) = match text.rsplit_once('@') {
            None => (text, None),
            Some((user, source)) => {
                let list = SourceList::parse(source.as_bytes()).ok();
                // A name would never match, so that one to be denied would be let in.
                let list = list.filter(|_| could_be_address(source));
                let bad = || "what stands behind @ is an address, or a network".to_owned();
                (user, Some(list.ok_or_else(bad)?))
            }
        };
        if user.is_empty() {
            return Err("a user is wanted, as in alice or alice@192.0.2.0/24".to_owned());
        }
        Ok(Self { user: user.to_owned(), source })
    }
}

/// Whether a text looks like an address, a network, or a pattern of one.
fn could_be_address(text: &str) -> bool {
    let is_ipv6 = text.contains(':');
    let fits = |byte: u8| byte.is_ascii_digit() || is_ipv6 && byte.is_ascii_hexdigit();
    text.bytes().all(|byte| fits(byte) || b".:/*?".contains(&byte))
}

impl UserPattern {
    fn matches(&self, name: &[u8], source: IpAddr) -> bool {
        pattern::matches(name, self.user.as_bytes(), Case::Exact)
            && self.source.as_ref().is_none_or(|list| list.permits(source))
    }
}

/// An account that somebody wants to use.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Its name in the user database.
    pub name: &'a [u8],
    /// Its user id.
    pub uid: u32,
    /// The names of its groups. Needed iff [`AccountRules::needs_groups`].
    pub groups: &'a [Vec<u8>],
    /// Where the client connects from.
    pub source: IpAddr,
}

/// What the system says about an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its login shell.
    pub shell: LoginShell,
    /// Whether its password was locked.
    pub locked: bool,
    /// The last day, counted from 1970-01-01, on which it may be used, if there is one.
    pub expires_on_day: Option<i64>,
    /// Today.
    pub today: i64,
}

/// What a login shell is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginShell {
    /// It runs whatever it is told to: one of `/etc/shells` (shells(5)) that is not restricted.
    Full,
    /// It decides itself what it runs: not in that list, or restricted by its name. All that is asked
    /// for must go through it, as with sshd, which never runs anything without it.
    Deciding,
    /// nologin(8) or false(1): there to let nobody in.
    Refusing,
    /// There is none, or it is not executable.
    Unusable,
}

/// Why an account is not let in: for the server's log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountRefused {
    /// One of `DenyUsers`.
    #[error("the account is one of the denied users")]
    DeniedUser,
    /// None of `AllowUsers`.
    #[error("the account is not one of the allowed users")]
    NotAllowedUser,
    /// In one of `DenyGroups`.
    #[error("the account is in one of the denied groups")]
    DeniedGroup,
    /// In none of `AllowGroups`.
    #[error("the account is in none of the allowed groups")]
    NotAllowedGroup,
    /// `PermitRootLogin no`.
    #[error("root may not log in")]
    Root,
    /// `PermitRootLogin forced-commands-only`, and the key has none.
    #[error("root may log in only with a key that has a command of its own")]
    RootWithoutCommand,
    /// Its password was locked.
    #[error("the account is locked")]
    Locked,
    /// Its last day is over.
    #[error("the account has expired")]
    Expired,
    /// Its shell is nologin(8) or false(1).
    #[error("the account's shell lets nobody in")]
    NoLoginShell,
    /// Its shell is missing or not executable.
    #[error("the account's shell is missing or not executable")]
    BadShell,
}

impl AccountRules {
    /// Whether the names of an account's groups are looked at.
    #[must_use]
    pub fn needs_groups(&self) -> bool {
        !self.allow_groups.is_empty() || !self.deny_groups.is_empty()
    }

    /// Whether the owner's rules let the account in.
    ///
    /// # Errors
    /// The rule that does not.
    pub fn judge(&self, account: Account<'_>) -> Result<(), AccountRefused> {
        let listed = |users: &[UserPattern]| {
            users.iter().any(|user| user.matches(account.name, account.source))
        };
        let grouped = |groups: &[String]| {
            let in_one = |wanted: &String| {
                let fits =
                    |group: &Vec<u8>| pattern::matches(group, wanted.as_bytes(), Case::Exact);
                account.groups.iter().any(fits)
            };
            groups.iter().any(in_one)
        };
        if account.uid == 0 && self.permit_root == PermitRoot::No {
            return Err(AccountRefused::Root);
        }
        if listed(&self.deny_users) {
            return Err(AccountRefused::DeniedUser);
        }
        if !self.allow_users.is_empty() && !listed(&self.allow_users) {
            return Err(AccountRefused::NotAllowedUser);
        }
        if grouped(&self.deny_groups) {
            return Err(AccountRefused::DeniedGroup);
        }
        if !self.allow_groups.is_empty() && !grouped(&self.allow_groups) {
            return Err(AccountRefused::NotAllowedGroup);
        }
        Ok(())
    }

    /// Whether an account with this uid may come in by a key with these restrictions.
    ///
    /// # Errors
    /// [`AccountRefused::RootWithoutCommand`].
    pub fn judge_key(&self, uid: u32, restrictions: &Restrictions) -> Result<(), AccountRefused> {
        let forced = restrictions.forced_command.is_some();
        if uid == 0 && self.permit_root == PermitRoot::ForcedCommandsOnly && !forced {
            return Err(AccountRefused::RootWithoutCommand);
        }
        Ok(())
    }
}

impl Standing {
    /// Whether the system itself lets the account in.
    ///
    /// As in sshd without PAM, the age of the password does not matter for who comes with a key. Unlike
    /// there, an account that never had a password is not a locked one: that is how accounts that are
    /// only for keys are made today.
    ///
    /// # Errors
    /// What keeps it out.
    pub fn judge(self) -> Result<(), AccountRefused> {
        if self.locked {
            return Err(AccountRefused::Locked);
        }
        if self.expires_on_day.is_some_and(|last| self.today > last) {
            return Err(AccountRefused::Expired);
        }
        match self.shell {
            LoginShell::Full | LoginShell::Deciding => Ok(()),
            LoginShell::Refusing => Err(AccountRefused::NoLoginShell),
            LoginShell::Unusable => Err(AccountRefused::BadShell),
        }
    }
}

/// What a login shell is, going by its path and the contents of `/etc/shells`; `None` where that file
/// is missing, which means a list of `/bin/sh` and `/bin/csh` (getusershell(3)).
#[must_use]
pub fn judge_shell(shell: &[u8], etc_shells: Option<&[u8]>) -> LoginShell {
    let name = shell.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if matches!(name, b"nologin" | b"false") {
        return LoginShell::Refusing;
    }
    let list = etc_shells.unwrap_or(b"/bin/sh\n/bin/csh\n");
    let is_listed = list.split(|byte| *byte == b'\n').any(|line| listed_shell(line) == Some(shell));
    if is_listed && !is_restricted_name(name) { LoginShell::Full } else { LoginShell::Deciding }
}

/// The path in a line of `/etc/shells`: from the first `/` to white space or a comment.
fn listed_shell(line: &[u8]) -> Option<&[u8]> {
    let line = line.split(|byte| *byte == b'#').next()?.trim_ascii_start();
    let path = line.split(u8::is_ascii_whitespace).next()?;
    path.starts_with(b"/").then_some(path)
}

/// A shell of this name restricts its user (bash(1), zsh(1), mksh(1)), and Debian lists it.
fn is_restricted_name(name: &[u8]) -> bool {
    let shells: [&[u8]; 7] = [b"sh", b"bash", b"dash", b"ksh", b"ksh93", b"mksh", b"zsh"];
    name.strip_prefix(b"r").is_some_and(|rest| shells.contains(&rest))
}

/// Reads a list of users, of patterns between commas or white space.
///
/// # Errors
/// The item that is none.
pub fn parse_users(text: &str) -> Result<Vec<UserPattern>, String> {
    let parse = |item: &str| UserPattern::from_str(item).map_err(|why| bad_item(item, &why));
    items(text).map(parse).collect()
}

/// Reads a list of groups, of patterns between commas or white space.
#[must_use]
pub fn parse_groups(text: &str) -> Vec<String> {
    items(text).map(str::to_owned).collect()
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty())
}

fn bad_item(item: &str, why: &str) -> String {
    format!("{}: {why}", escape_bounded(item.as_bytes(), 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(set: impl FnOnce(&mut AccountRules)) -> AccountRules {
        let mut rules = AccountRules::default();
        set(&mut rules);
        rules
    }

    fn judge(rules: &AccountRules, name: &str, groups: &[&str]) -> Result<(), AccountRefused> {
        let groups: Vec<Vec<u8>> = groups.iter().map(|group| group.as_bytes().to_vec()).collect();
        let uid = if name == "root" { 0 } else { 1000 };
        let source = [192, 0, 2, 7].into();
        rules.judge(Account { name: name.as_bytes(), uid, groups: &groups, source })
    }

    #[test]
    fn everybody_may_come_in_unless_a_rule_says_otherwise() {
        let none = AccountRules::default();
        assert!(!none.needs_groups());
        assert_eq!(judge(&none, "alice", &[]), Ok(()));
        assert_eq!(judge(&none, "root", &[]), Ok(()));
    }

    #[test]
    fn users_are_denied_before_they_are_allowed() {
        let both = rules(|rules| {
            rules.allow_users = parse_users("a*,bob").unwrap();
            rules.deny_users = parse_users("alice").unwrap();
        });
        assert_eq!(judge(&both, "anna", &[]), Ok(()));
        assert_eq!(judge(&both, "bob", &[]), Ok(()));
        assert_eq!(judge(&both, "alice", &[]), Err(AccountRefused::DeniedUser));
        assert_eq!(judge(&both, "carol", &[]), Err(AccountRefused::NotAllowedUser));
        // The names of users have a case.
        assert_eq!(judge(&both, "Bob", &[]), Err(AccountRefused::NotAllowedUser));
    }

    #[test]
    fn a_user_may_be_bound_to_where_it_comes_from() {
        let bound = |text: &str| rules(|rules| rules.allow_users = parse_users(text).unwrap());
        for good in ["alice@192.0.2.0/24", "alice@192.0.2.*", "*@192.0.2.7", "x alice"] {
            assert_eq!(judge(&bound(good), "alice", &[]), Ok(()), "{good}");
        }
        for bad in ["alice@192.0.3.0/24", "bob@192.0.2.7", "alice@2001:db8::/32"] {
            let refused = Err(AccountRefused::NotAllowedUser);
            assert_eq!(judge(&bound(bad), "alice", &[]), refused, "{bad}");
        }
        for malformed in [
            "alice@",
            "@192.0.2.7",
            "alice@192.0.2.0/33",
            "alice@192.0.2.1/24",
            "alice@host.example",
            "alice@bad.de",
            "alice@!192.0.2.7",
        ] {
            assert!(parse_users(malformed).is_err(), "{malformed}");
        }
    }

    #[test]
    fn groups_are_denied_before_they_are_allowed() {
        let both = rules(|rules| {
            rules.allow_groups = parse_groups("staff, dev*");
            rules.deny_groups = parse_groups("guests");
        });
        assert!(both.needs_groups());
        assert_eq!(judge(&both, "alice", &["users", "developers"]), Ok(()));
        let refused = judge(&both, "alice", &["staff", "guests"]);
        assert_eq!(refused, Err(AccountRefused::DeniedGroup));
        assert_eq!(judge(&both, "alice", &["users"]), Err(AccountRefused::NotAllowedGroup));
        assert_eq!(judge(&both, "alice", &[]), Err(AccountRefused::NotAllowedGroup));
    }

    #[test]
    fn root_comes_in_as_permit_root_says() {
        let forced =
            Restrictions { forced_command: Some("backup".into()), ..Restrictions::default() };
        let free = Restrictions::default();
        for (word, any, free_key, forced_key) in [
            ("yes", true, true, true),
            ("prohibit-password", true, true, true),
            ("without-password", true, true, true),
            ("forced-commands-only", true, false, true),
            ("no", false, true, true),
        ] {
            let rules = rules(|rules| rules.permit_root = word.parse().unwrap());
            assert_eq!(rules.permit_root.word() == word, word != "without-password");
            assert_eq!(judge(&rules, "root", &[]).is_ok(), any, "{word}");
            assert_eq!(rules.judge_key(0, &free).is_ok(), free_key, "{word}");
            assert_eq!(rules.judge_key(0, &forced).is_ok(), forced_key, "{word}");
            // Others it does not concern.
            assert_eq!(judge(&rules, "alice", &[]), Ok(()), "{word}");
            assert_eq!(rules.judge_key(1000, &free), Ok(()), "{word}");
        }
        assert!("maybe".parse::<PermitRoot>().is_err());
    }

    #[test]
    fn an_account_is_good_up_to_and_including_its_last_day() {
        let good = Standing {
            shell: LoginShell::Full,
            locked: false,
            expires_on_day: Some(20_000),
            today: 20_000,
        };
        assert_eq!(good.judge(), Ok(()));
        let judge = |standing: Standing| standing.judge();
        assert_eq!(judge(Standing { today: 20_001, ..good }), Err(AccountRefused::Expired));
        assert_eq!(
            judge(Standing { expires_on_day: Some(0), ..good }),
            Err(AccountRefused::Expired)
        );
        assert_eq!(judge(Standing { expires_on_day: None, ..good }), Ok(()));
        assert_eq!(judge(Standing { locked: true, ..good }), Err(AccountRefused::Locked));
        for (shell, expected) in [
            (LoginShell::Deciding, Ok(())),
            (LoginShell::Refusing, Err(AccountRefused::NoLoginShell)),
            (LoginShell::Unusable, Err(AccountRefused::BadShell)),
        ] {
            assert_eq!(judge(Standing { shell, ..good }), expected);
        }
    }

    #[test]
    fn a_shell_is_judged_by_the_list_of_shells_and_by_its_name() {
        let list = b"# valid shells\n/bin/sh\n  /bin/bash # the usual\n/bin/rbash\n/opt/my sh\n";
        let judge = |shell: &str| judge_shell(shell.as_bytes(), Some(list));
        assert_eq!(judge("/bin/sh"), LoginShell::Full);
        assert_eq!(judge("/bin/bash"), LoginShell::Full);
        for deciding in ["/bin/rbash", "/usr/bin/git-shell", "/bin/ba", "/opt/my sh", ""] {
            assert_eq!(judge(deciding), LoginShell::Deciding, "{deciding}");
        }
        for refusing in ["/usr/sbin/nologin", "/sbin/nologin", "/bin/false"] {
            assert_eq!(judge(refusing), LoginShell::Refusing, "{refusing}");
        }
        assert_eq!(judge_shell(b"/bin/sh", None), LoginShell::Full);
        assert_eq!(judge_shell(b"/bin/bash", None), LoginShell::Deciding);
    }
}
