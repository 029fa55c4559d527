//! Whether others may change a plugin: whoever writes its file runs code as the user who trains.
//!
//! File and folders must belong to root, to the user, or to the owner of this program, who could change that as well. Others
//! must not be able to write them: neither everybody nor, through the group, anybody but these. Only root's group and one of the
//! user's own name, as a umask of 002 goes with, are nobody else, and only while `/etc/group` and `/etc/passwd` name no other
//! member: those files do not say who has any other group, since accounts of the network (LDAP) stand elsewhere. In a folder
//! with the sticky bit, such as `/tmp`, others replace no file that is not their own. Each link on the way counts as well: its
//! owner could point it elsewhere. Access control lists beyond the mode, and whoever has the rights of root, are not looked
//! at.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;
use std::{fs, io};

/// Who may have a hand in a plugin, and who is in which group.
#[derive(Debug)]
struct Trusted {
    users: BTreeSet<u32>,
    passwd: String,
    group: String,
}

/// What stands at a place of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    File,
    Folder,
    Link,
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

/// Links that may be followed, as many as Linux follows.
const MOST_LINKS: usize = 40;

/// Checks the plugin file at `path`, which is `real` behind all links: the file, each link on the way to it, and each folder that
/// one of them lies in.
pub(super) fn check(path: &Path, real: &Path) -> Result<(), String> {
    static TRUSTED: LazyLock<Trusted> = LazyLock::new(Trusted::of_this_process);
    let given = std::path::absolute(path).map_err(|error| error.to_string())?;
    let (places, end) = places(&given).map_err(|error| format!("{}: {error}", given.display()))?;
    if end != real {
        return Err(format!("{} led elsewhere while it was checked: start again", given.display()));
    }
    // The file first, then what is nearest to it.
    for place in places.iter().rev() {
        let found = fs::symlink_metadata(place).map_err(|error| format!("{}: {error}", place.display()))?;
        let sort = match found.file_type() {
            kind if kind.is_dir() => Sort::Folder,
            kind if kind.is_symlink() => Sort::Link,
            _ => Sort::File,
        };
        let access = Access { mode: found.mode(), uid: found.uid(), gid: found.gid() };
        TRUSTED.fault(place, access, sort).map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// Every place that an absolute path leads through, in that order, each once and without a link in front of it; and where it
/// ends.
fn places(given: &Path) -> io::Result<(Vec<PathBuf>, PathBuf)> {
    let mut rest: Vec<PathBuf> = parts(given);
    let (mut places, mut at, mut links) = (vec![PathBuf::from("/")], PathBuf::from("/"), 0);
    while let Some(part) = rest.pop() {
        // `/`, `.` and `..` lead to places that were seen; without a link in front, `..` is what stands before.
        match part.components().next() {
            Some(Component::Normal(name)) => at.push(name),
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(at.pop()),
            _ => {}
        }
        if !places.contains(&at) {
            places.push(at.clone());
        }
        if fs::symlink_metadata(&at)?.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::other("too many links"));
            }
            rest.extend(parts(&fs::read_link(&at)?));
            at.pop();
        }
    }
    Ok((places, at))
}

/// The components of a path, the last one first.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components().rev().map(|part| PathBuf::from(part.as_os_str())).collect()
}

impl Trusted {
    fn of_this_process() -> Self {
        let program = std::env::current_exe().and_then(fs::metadata).map(|program| program.uid());
        let users = [0, rustix::process::geteuid().as_raw()].into_iter().chain(program.ok()).collect();
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self { users, passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// Why a file, folder or link is not to be trusted, and what to do.
    fn fault(&self, path: &Path, access: Access, sort: Sort) -> Option<String> {
        let what = match sort {
            Sort::File => "the file",
            Sort::Folder => "the folder",
            Sort::Link => "the link",
        };
        let shown = path.display();
        if !self.users.contains(&access.uid) {
            let owner = self.user_name(access.uid);
            return Some(format!(
                "{what} {shown} belongs to {owner}, who could change the plugin: copy it to a folder of your own"
            ));
        }
        // Of a link the mode says nothing: only its owner, and who writes its folder, can replace it.
        if sort == Sort::Link || sort == Sort::Folder && access.mode & STICKY != 0 {
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

    /// Whether the group is root's or of a trusted user's own name, and has no member that is not trusted.
    fn is_trusted_group(&self, gid: u32) -> bool {
        let line: Option<Vec<_>> = self.group_line(gid).map(|line| line.split(':').collect());
        let name = line.as_ref().map_or("", |fields| fields[0]);
        let own = || self.users_where(|fields| fields[0] == name).any(|uid| self.users.contains(&uid));
        if gid != 0 && !own() {
            return false;
        }
        let members = line.as_ref().and_then(|fields| fields.get(3)).copied().unwrap_or_default();
        let named = members.split(',').map(str::trim).filter(|name| !name.is_empty());
        // Whoever has no number here may be anybody.
        let mut named = named.map(|name| self.users_where(|fields| fields[0] == name).next());
        let mut by_default = self.users_where(|fields| fields[3] == gid.to_string());
        named.all(|uid| uid.is_some_and(|uid| self.users.contains(&uid)))
            && by_default.all(|uid| self.users.contains(&uid))
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
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const FILE: &str = "/opt/libmine.so";

    fn trusted() -> Trusted {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/home/bob:/bin/sh\n\
                      eve:x:1002:50::/home/eve:/bin/sh\n";
        let group = "root:x:0:\nann:x:1000:\nbob:x:1001:ann\nstaff:x:50:\nwe:x:60:ann,bob\nmine:x:70:ann\nempty:x:75:\ngone:x:80:zoe\n";
        Trusted { users: [0, 1000].into(), passwd: passwd.to_owned(), group: group.to_owned() }
    }

    fn fault(mode: u32, uid: u32, gid: u32, sort: Sort) -> Option<String> {
        trusted().fault(Path::new(FILE), Access { mode, uid, gid }, sort)
    }

    #[test]
    fn what_only_the_user_and_root_write_is_trusted() {
        for (mode, uid, gid) in [(0o644, 1000, 1000), (0o755, 0, 0), (0o644, 1000, 60), (0o600, 0, 9999)] {
            assert_eq!(fault(mode, uid, gid, Sort::File), None);
        }
        // A umask of 002 and a group of the user's own.
        for gid in [1000, 0] {
            assert_eq!(fault(0o664, 1000, gid, Sort::File), None, "{gid}");
        }
        // Root's group needs no line.
        let no_groups = Trusted { group: String::new(), ..trusted() };
        assert!(no_groups.is_trusted_group(0) && !no_groups.is_trusted_group(1000));
    }

    #[test]
    fn a_group_of_the_users_name_with_others_in_it_is_not_trusted() {
        let with = |group: &str| Trusted { group: group.to_owned(), ..trusted() };
        assert!(with("ann:x:1000:ann").is_trusted_group(1000));
        assert!(!with("ann:x:1000:ann,bob").is_trusted_group(1000));
        assert!(!with("root:x:0:bob").is_trusted_group(0));
        // Eve's own group by /etc/passwd.
        assert!(!with("ann:x:50:").is_trusted_group(50));
    }

    #[test]
    fn what_others_write_is_refused_with_the_command_that_mends_it() {
        let told = |mode, gid| fault(mode, 1000, gid, Sort::File).unwrap();
        assert_eq!(
            told(0o646, 1000),
            "the file /opt/libmine.so may be written by everybody and with it the plugin changed: `chmod o-w /opt/libmine.so`"
        );
        assert!(told(0o666, 60).ends_with("`chmod go-w /opt/libmine.so`"));
        assert!(told(0o664, 60).contains("by its group, we, and"), "bob is in it");
        // Neither a group without members here (70 names the user alone, 75 nobody): accounts of the network may have it.
        for gid in [50, 70, 75, 1001, 80, 9999] {
            assert!(told(0o664, gid).ends_with("`chmod g-w /opt/libmine.so`"), "{gid}");
        }
        assert!(fault(0o644, 1001, 1000, Sort::File).unwrap().contains("belongs to bob (user 1001), who could change"));
        assert!(
            fault(0o755, 4242, 0, Sort::Folder).unwrap().starts_with("the folder /opt/libmine.so belongs to user 4242")
        );
    }

    #[test]
    fn the_sticky_bit_is_for_folders() {
        assert_eq!(fault(0o1777, 0, 0, Sort::Folder), None);
        assert!(fault(0o777, 0, 0, Sort::Folder).is_some());
        assert!(fault(0o1666, 1000, 1000, Sort::File).is_some());
        assert!(fault(0o1777, 4242, 0, Sort::Folder).is_some(), "its owner may replace files");
    }

    /// A file behind two links, each in a folder of its own.
    struct Chain {
        base: tempfile::TempDir,
        given: PathBuf,
        real: PathBuf,
    }

    fn chain() -> Chain {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().canonicalize().unwrap();
        for name in ["first", "second", "third"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let [given, between, real] = ["first/a.so", "second/b.so", "third/c.so"].map(|name| root.join(name));
        fs::write(&real, "a plugin").unwrap();
        symlink(&real, &between).unwrap();
        symlink("../second/b.so", &given).unwrap();
        Chain { base, given, real }
    }

    #[test]
    fn the_folder_of_every_link_is_checked() {
        let Chain { base, given, real } = chain();
        assert_eq!(check(&given, &real), Ok(()));
        for name in ["first", "second", "third"] {
            let folder = base.path().canonicalize().unwrap().join(name);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o757)).unwrap();
            let said = check(&given, &real).unwrap_err();
            assert!(
                said.starts_with(&format!("the folder {} may be written by everybody", folder.display())),
                "{said}"
            );
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert_eq!(check(&given, &real), Ok(()));
    }

    #[test]
    fn what_is_loaded_is_what_was_checked() {
        let Chain { base, given, real } = chain();
        let other = real.with_file_name("other.so");
        fs::write(&other, "another plugin").unwrap();
        // Somebody points a link elsewhere between the two.
        let said = check(&given, &other).unwrap_err();
        assert!(said.ends_with("led elsewhere while it was checked: start again"), "{said}");
        let ring = base.path().join("ring.so");
        symlink("ring.so", &ring).unwrap();
        assert!(check(&ring, &real).unwrap_err().ends_with("too many links"));
    }

    #[test]
    fn a_link_belongs_to_somebody() {
        assert_eq!(fault(0o777, 1000, 50, Sort::Link), None);
        assert!(
            fault(0o777, 1001, 50, Sort::Link)
                .unwrap()
                .starts_with("the link /opt/libmine.so belongs to bob (user 1001)")
        );
    }

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-1.so")), "/a/b-1.so");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
