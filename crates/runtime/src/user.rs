//! Who a container's process runs as, looked up in the container's own `/etc/passwd` and
//! `/etc/group`. Pure: takes the files' texts.

use crate::types::{Identity, User};

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdLine { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// (name, gid, members) of each line.
fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// Resolves `user` with the container's passwd and group files (empty where missing).
pub fn resolve(user: &User, passwd: &str, group: &str) -> Result<Identity, String> {
    let (image_user, image_group) = match user.image_user.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (user.image_user.as_str(), None),
    };
    let by_uid = |uid: u32| passwd_lines(passwd).find(|l| l.uid == uid);
    let line = match (user.uid, image_user) {
        (Some(uid), _) => by_uid(uid),
        (None, "") => by_uid(0),
        // A name wins over the same digits as a number.
        (None, name) => {
            passwd_lines(passwd).find(|l| l.name == name).or_else(|| name.parse().ok().and_then(by_uid))
        }
    };
    let uid = match (user.uid, &line, image_user) {
        (Some(uid), _, _) => uid,
        (None, Some(line), _) => line.uid,
        (None, None, "") => 0,
        (None, None, name) => name
            .parse()
            .map_err(|_| format!("unable to find user {name}: no matching entries in passwd file"))?,
    };
    if user.must_not_be_root && uid == 0 {
        return Err("container has runAsNonRoot and image will run as root".to_owned());
    }
    let gid = match (user.gid, image_group.filter(|_| user.uid.is_none())) {
        (Some(gid), _) => gid,
        (None, Some(name)) if !name.is_empty() => group_lines(group)
            .find(|(n, _, _)| *n == name)
            .map(|(_, gid, _)| gid)
            .or_else(|| name.parse().ok())
            .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?,
        _ => line.as_ref().map_or(0, |l| l.gid),
    };
    let mut groups = user.supplemental_groups.clone();
    if user.merge_image_groups
        && let Some(line) = &line
    {
        let member = |members: &str| members.split(',').any(|m| m == line.name);
        groups.extend(group_lines(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    // The primary group is always among the supplemental ones, as container runtimes have it.
    groups.push(gid);
    let mut seen = Vec::new();
    groups.retain(|g| {
        !seen.contains(g) && {
            seen.push(*g);
            true
        }
    });
    let home = line.map(|l| l.home.to_owned()).filter(|h| !h.is_empty()).unwrap_or_else(|| "/".to_owned());
    Ok(Identity { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n#no:x:9:9::/:\nweb:x:33:34:web:/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nadm:x:4:web,other\nusers:x:100:web\n";

    fn case(image_user: &str, change: impl FnOnce(&mut User)) -> Result<Identity, String> {
        let mut user = User { image_user: image_user.into(), merge_image_groups: true, ..User::default() };
        change(&mut user);
        resolve(&user, PASSWD, GROUP)
    }

    #[test]
    fn resolves_users() {
        let id = |uid, gid, groups: &[u32], home: &str| {
            Ok(Identity { uid, gid, groups: groups.to_vec(), home: home.into() })
        };
        assert_eq!(case("", |_| ()), id(0, 0, &[0], "/root"));
        assert_eq!(case("web", |_| ()), id(33, 34, &[4, 100, 34], "/var/www"));
        assert_eq!(case("33", |_| ()), id(33, 34, &[4, 100, 34], "/var/www"));
        assert_eq!(case("1000", |_| ()), id(1000, 0, &[0], "/"));
        assert_eq!(case("web:users", |_| ()), id(33, 100, &[4, 100], "/var/www"));
        assert_eq!(case("web:77", |u| u.merge_image_groups = false), id(33, 77, &[77], "/var/www"));
        assert_eq!(case("web", |u| u.uid = Some(5)), id(5, 0, &[0], "/"));
        assert_eq!(
            case("", |u| (u.uid, u.gid, u.supplemental_groups) = (Some(33), Some(7), vec![8])),
            id(33, 7, &[8, 4, 100, 7], "/var/www")
        );
        // The image's group goes with the image's user.
        assert_eq!(case("web:users", |u| u.uid = Some(5)), id(5, 0, &[0], "/"));
        let digits = User { image_user: "33".into(), ..User::default() };
        let passwd = format!("33:x:7:8::/named:/bin/sh\n{PASSWD}");
        assert_eq!(resolve(&digits, &passwd, GROUP), id(7, 8, &[8], "/named"), "a name wins");
        assert_eq!(
            case("nobody", |_| ()).unwrap_err(),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            case("", |u| u.must_not_be_root = true).unwrap_err(),
            "container has runAsNonRoot and image will run as root"
        );
    }
}
