//! Whether others may change a plugin: whoever writes its file runs code as the user who trains.
//!
//! File and folders must belong to root, to the user, or to the owner of this program, who could change that as well. Others
//! must not be able to write them: neither everybody nor, through the group, anybody but these. A group that is the user's
//! alone, as a umask of 002 goes with, is nobody else; `/etc/group` and `/etc/passwd` say who is in it, and a group that
//! they do not know counts as others. In a folder with the sticky bit, such as `/tmp`, others replace no file that is not
//! their own. Access control lists beyond the mode, and whoever has the rights of root, are not looked at.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::LazyLock;

/// Who may have a hand in a plugin, and who is in which group.
#[derive(Debug)]
struct Trusted {
    users: BTreeSet<u32>,
    passwd: String,
    group: String,
}

/// What the system says of a file or folder.
#[derive(Debug, Clone, Copy)]
struct Access {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The bit that everybody's files in a folder keep to themselves with.
const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// Checks the plugin file at `path` and each folder on the way to it, by the path as given and by what its links lead to.
pub(super) fn check(path: &Path) -> Result<(), String> {
    static TRUSTED: LazyLock<Trusted> = LazyLock::new(Trusted::of_this_process);
    let given = std::path::absolute(path).map_err(|error| error.to_string())?;
    let real = given.canonicalize().map_err(|error| error.to_string())?;
    let mut seen: Vec<&Path> = Vec::new();
    for place in real.ancestors().chain(given.ancestors()) {
        if seen.contains(&place) {
            continue;
        }
        seen.push(place);
        let found = fs::metadata(place).map_err(|error| format!("{}: {error}", place.display()))?;
        let access = Access { mode: found.mode(), uid: found.uid(), gid: found.gid() };
        TRUSTED.fault(place, access, found.is_dir()).map_or(Ok(()), Err)?;
    }
    Ok(())
}

impl Trusted {
    fn of_this_process() -> Self {
        let program = std::env::current_exe().and_then(fs::metadata).map(|program| program.uid());
        let users = [0, rustix::process::geteuid().as_raw()].into_iter().chain(program.ok()).collect();
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self { users, passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// Why a file or folder is not to be trusted, and what to do.
    fn fault(&self, path: &Path, access: Access, is_dir: bool) -> Option<String> {
        let what = if is_dir { "the folder" } else { "the file" };
        let shown = path.display();
        if !self.users.contains(&access.uid) {
            let owner = self.user_name(access.uid);
            return Some(format!(
                "{what} {shown} belongs to {owner}, who could change the plugin: copy it to a folder of your own"
            ));
        }
        if is_dir && access.mode & STICKY != 0 {
            return None;
        }
        let others = access.mode & OTHERS_WRITE != 0;
        let group = access.mode & GROUP_WRITES != 0 && !self.is_trusted_group(access.gid);
        let (who, bits) = match (group, others) {
            (false, false) => return None,
            (true, false) => (format!("its group, {},", self.group_name(access.gid)), "g-w"),
            (false, true) => ("everybody".to_owned(), "o-w"),
            (true, true) => ("everybody".to_owned(), "go-w"),
        };
        Some(format!(
            "{what} {shown} may be written by {who} and with it the plugin changed: `chmod {bits} {}`",
            quoted(path)
        ))
    }

    /// Whether all that are in the group are trusted anyway.
    fn is_trusted_group(&self, gid: u32) -> bool {
        let Some(members) = self.group_line(gid).and_then(|line| line.split(':').nth(3)) else { return false };
        let named = members.split(',').map(str::trim).filter(|name| !name.is_empty());
        // Whoever has no number here may be anybody.
        let mut named = named.map(|name| self.users_where(|fields| fields[0] == name).next());
        let by_default = self.users_where(|fields| fields[3] == gid.to_string());
        named.all(|uid| uid.is_some_and(|uid| self.users.contains(&uid)))
            && by_default.into_iter().all(|uid| self.users.contains(&uid))
    }

    /// The numbers of the users whose line in `/etc/passwd` fits.
    fn users_where(&self, fits: impl Fn(&[&str]) -> bool) -> impl Iterator<Item = u32> {
        let fields = self.passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = fields.filter(|fields| fields.len() >= 4 && fits(fields));
        found.filter_map(|fields| fields[2].parse().ok()).collect::<Vec<_>>().into_iter()
    }

    fn group_line(&self, gid: u32) -> Option<&str> {
        self.group.lines().find(|line| line.split(':').nth(2).is_some_and(|field| field == gid.to_string()))
    }

    fn group_name(&self, gid: u32) -> String {
        self.group_line(gid).and_then(|line| line.split(':').next()).map_or_else(|| gid.to_string(), str::to_owned)
    }

    fn user_name(&self, uid: u32) -> String {
        let line =
            self.passwd.lines().find(|line| line.split(':').nth(2).is_some_and(|field| field == uid.to_string()));
        let name = line.and_then(|line| line.split(':').next());
        name.map_or_else(|| format!("user {uid}"), |name| format!("{name} (user {uid})"))
    }
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |letter: char| letter.is_alphanumeric() || "/._-+".contains(letter);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/opt/libmine.so";

    fn trusted() -> Trusted {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/home/bob:/bin/sh\n\
                      eve:x:1002:50::/home/eve:/bin/sh\n";
        let group =
            "root:x:0:\nann:x:1000:\nbob:x:1001:ann\nstaff:x:50:\nwe:x:60:ann,bob\nmine:x:70:ann\ngone:x:80:zoe\n";
        Trusted { users: [0, 1000].into(), passwd: passwd.to_owned(), group: group.to_owned() }
    }

    fn fault(mode: u32, uid: u32, gid: u32, is_dir: bool) -> Option<String> {
        trusted().fault(Path::new(FILE), Access { mode, uid, gid }, is_dir)
    }

    #[test]
    fn what_only_the_user_and_root_write_is_trusted() {
        for (mode, uid, gid) in [(0o644, 1000, 1000), (0o755, 0, 0), (0o644, 1000, 60), (0o600, 0, 9999)] {
            assert_eq!(fault(mode, uid, gid, false), None);
        }
        // A umask of 002 and a group of the user's own, or one with nobody else in it.
        for gid in [1000, 70, 0] {
            assert_eq!(fault(0o664, 1000, gid, false), None, "{gid}");
        }
    }

    #[test]
    fn what_others_write_is_refused_with_the_command_that_mends_it() {
        let told = |mode, gid| fault(mode, 1000, gid, false).unwrap();
        assert_eq!(
            told(0o646, 1000),
            "the file /opt/libmine.so may be written by everybody and with it the plugin changed: `chmod o-w /opt/libmine.so`"
        );
        assert!(told(0o666, 60).ends_with("`chmod go-w /opt/libmine.so`"));
        assert!(told(0o664, 60).contains("by its group, we, and"), "bob is in it");
        for gid in [50, 1001, 80, 9999] {
            assert!(told(0o664, gid).ends_with("`chmod g-w /opt/libmine.so`"), "{gid}");
        }
        assert!(fault(0o644, 1001, 1000, false).unwrap().contains("belongs to bob (user 1001), who could change"));
        assert!(fault(0o755, 4242, 0, true).unwrap().starts_with("the folder /opt/libmine.so belongs to user 4242"));
    }

    #[test]
    fn the_sticky_bit_is_for_folders() {
        assert_eq!(fault(0o1777, 0, 0, true), None);
        assert!(fault(0o777, 0, 0, true).is_some());
        assert!(fault(0o1666, 1000, 1000, false).is_some());
        assert!(fault(0o1777, 4242, 0, true).is_some(), "its owner may replace files");
    }

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-1.so")), "/a/b-1.so");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
