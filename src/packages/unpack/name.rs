//! Names in an archive: what may become a path.

/// Bytes of a path, or of a symlink's target.
pub(super) const MAX_PATH: usize = 1024;
/// Bytes between two slashes.
const MAX_PART: usize = 255;
/// Parts of a path.
const MAX_DEPTH: usize = 32;
/// Characters of a name in a message.
const MAX_SHOWN: usize = 120;

/// The path that a name means, without `.` and a slash at its end; empty for the top. Else why not.
pub(super) fn clean(raw: &[u8]) -> Result<String, &'static str> {
    let name = text(raw)?;
    if name.starts_with('/') {
        return Err("its name is absolute");
    }
    let name = name.strip_suffix('/').unwrap_or(name);
    let mut path = String::with_capacity(name.len());
    for part in name.split('/') {
        check(part)?;
        match part {
            "." => {}
            ".." => return Err("its name has `..`"),
            _ => {
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(part);
            }
        }
    }
    if depth(&path) > MAX_DEPTH {
        return Err("its name has more than 32 parts");
    }
    Ok(path)
}

/// A symlink's target that stays within the tree, from the link's place. Else why not.
///
/// `..` may only stand at its beginning: behind a name that is a symlink itself it leads who knows where.
pub(super) fn target<'a>(link: &str, raw: &'a [u8]) -> Result<&'a str, &'static str> {
    let target = text(raw).map_err(|why| match why {
        EMPTY => "it points nowhere",
        why => why,
    })?;
    if target.starts_with('/') {
        return Err("it points to an absolute path");
    }
    let mut up = depth(link).saturating_sub(1);
    let mut down = false;
    for part in target.strip_suffix('/').unwrap_or(target).split('/') {
        check(part)?;
        match part {
            "." => {}
            ".." if down => return Err("it points to a path with `..` behind a name"),
            ".." => up = up.checked_sub(1).ok_or("it points out of the package")?,
            _ => down = true,
        }
    }
    Ok(target)
}

const EMPTY: &str = "its name is empty";

fn text(raw: &[u8]) -> Result<&str, &'static str> {
    if raw.is_empty() {
        return Err(EMPTY);
    }
    if raw.len() > MAX_PATH {
        return Err("a path in it has more than 1024 bytes");
    }
    let text = core::str::from_utf8(raw).map_err(|_| "a path in it is not UTF-8")?;
    if text.chars().any(char::is_control) {
        return Err("a path in it has a control character");
    }
    Ok(text)
}

const fn check(part: &str) -> Result<(), &'static str> {
    if part.is_empty() {
        return Err("a path in it has an empty part");
    }
    if part.len() > MAX_PART {
        return Err("a path in it has a part of more than 255 bytes");
    }
    Ok(())
}

fn depth(path: &str) -> usize {
    path.split('/').count()
}

/// A name as a message shows it.
pub(super) fn shown(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut shown: String = text.chars().take(MAX_SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}
