//! Names of images in the store: setting, finding, listing, removing.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, types::Type};

use super::{Digest, Image, ImageConfig, Images, Reference};
use crate::events::Events;
use crate::snapshot::Snapshots;
use crate::store::now_ns;
use crate::{Error, Result};

/// Points a name at an image.
pub(super) fn set(db: &Connection, name: &Reference, image: &Digest, now: i64) -> Result<()> {
    let Some(tagged) = name.tagged() else { return Ok(()) };
    db.execute(
        "INSERT INTO tags VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET image = ?2, tagged_ns = ?3",
        (tagged, image.to_string(), now),
    )
    .map(|_| ())
    .map_err(|source| Error::database("set the tag", source))
}

/// Remembers that a digest means this image in a repository of a registry.
pub(super) fn set_digest(db: &Connection, name: &str, digest: &Digest, image: &Digest) -> Result<()> {
    let sql =
        "INSERT INTO repo_digests VALUES (?1, ?2, ?3) ON CONFLICT (name, digest) DO UPDATE SET image = ?3";
    db.execute(sql, (name, digest.to_string(), image.to_string()))
        .map(|_| ())
        .map_err(|source| Error::database("remember the digest", source))
}

/// What `remove` did, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A name is gone.
    Untagged(String),
    /// An image is gone.
    Deleted(Digest),
}

const COLUMNS: &str = "id, manifest, config, size, loaded_ns";

impl Images<'_> {
    /// The image that a user means: a full id, a name (with tag, digest or both), or an unambiguous beginning of an id.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::AmbiguousImage`], and for what is neither a name nor an id [`Error::Reference`].
    pub fn find(&self, text: &str) -> Result<Image> {
        find(self.store.db(), text)
    }

    /// The names of an image in full, sorted.
    pub fn names(&self, image: &Digest) -> Result<Vec<Reference>> {
        let fail = |source| Error::database("list tags", source);
        let mut statement = self
            .store
            .db()
            .prepare_cached("SELECT name FROM tags WHERE image = ?1 ORDER BY name")
            .map_err(fail)?;
        let names = statement.query_map([image.to_string()], |row| row.get::<_, String>(0)).map_err(fail)?;
        names.map(|name| name.map_err(fail)?.parse()).collect()
    }

    /// All images, the latest loaded first.
    pub fn list(&self) -> Result<Vec<Image>> {
        let fail = |source| Error::database("list images", source);
        let sql = format!("SELECT {COLUMNS} FROM images ORDER BY loaded_ns DESC, id");
        let mut statement = self.store.db().prepare(&sql).map_err(fail)?;
        let images = statement.query_map((), read).map_err(fail)?;
        images.collect::<rusqlite::Result<_>>().map_err(fail)
    }

    /// Gives an image one more name. A name that another image had moves.
    pub fn tag(&self, image: &str, name: &Reference) -> Result<()> {
        if name.digest().is_some() {
            return Err(Error::Reference { text: name.to_string(), why: "a new name cannot have a digest" });
        }
        self.store
            .write("set the tag", |transaction| {
                let image = find(transaction, image)?;
                set(transaction, name, &image.id, now_ns())?;
                Ok(image.id)
            })
            .map(|id| self.tell("tag", &id.to_string(), &name.familiar()))
    }

    /// Tells what happened to an image.
    pub(super) fn tell(&self, action: &str, id: &str, name: &str) {
        Events::new(self.store.root()).add("image", action, id, &[("name", name)]);
    }

    fn tell_removed(&self, removed: &[Removed]) {
        for removed in removed {
            match removed {
                Removed::Untagged(name) => self.tell("untag", name, name),
                Removed::Deleted(id) => self.tell("delete", &id.to_string(), &id.to_string()),
            }
        }
    }

    /// Removes a name, and with its last name the image; by id, the image with all its names.
    ///
    /// With `force` an image of several names goes by its id, and a name goes even if a container needs the image (which
    /// stays then, without a name).
    ///
    /// # Errors
    /// [`Error::ImageInUse`] while a container, running or not, or a snapshot is made from the image.
    pub fn remove(&self, text: &str, force: bool) -> Result<Vec<Removed>> {
        let saved = self.in_snapshots()?;
        let removed =
            self.store.write("remove the image", |transaction| remove(transaction, text, force, &saved))?;
        self.tell_removed(&removed);
        self.store.sweep()?;
        Ok(removed)
    }

    /// The images of snapshots, each with the name of one that needs it.
    fn in_snapshots(&self) -> Result<HashMap<String, String>> {
        let snapshots = Snapshots::new(self.store).list()?.into_iter();
        Ok(snapshots.filter_map(|found| Some((found.about.image?, found.name))).collect())
    }

    /// Removes the images that have no name, or with `all` those that no container and no snapshot is made from; returns what
    /// was done and the freed bytes.
    pub fn prune(&self, all: bool) -> Result<(Vec<Removed>, u64)> {
        let saved = self.in_snapshots()?;
        let removed = self.store.write("prune images", |transaction| {
            let fail = |source| Error::database("prune images", source);
            let unnamed = if all { "1" } else { "id NOT IN (SELECT image FROM tags)" };
            let sql = format!(
                "SELECT {COLUMNS} FROM images WHERE {unnamed}
                 AND id NOT IN (SELECT image FROM containers WHERE image IS NOT NULL)"
            );
            let mut statement = transaction.prepare(&sql).map_err(fail)?;
            let images = statement
                .query_map((), read)
                .map_err(fail)?
                .collect::<rusqlite::Result<Vec<_>>>()
                .map_err(fail)?;
            let mut removed = Vec::new();
            for image in images.iter().filter(|image| !saved.contains_key(&image.id.to_string())) {
                delete(transaction, &image.id, &mut removed)?;
            }
            Ok(removed)
        })?;
        self.tell_removed(&removed);
        let unfinished = super::partial::Partials::open(self.store.root())?.prune_all()?;
        Ok((removed, self.store.sweep()? + unfinished))
    }
}

fn find(db: &Connection, text: &str) -> Result<Image> {
    let missing = || Error::NoSuchImage { reference: text.to_owned() };
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if let Some(id) = Digest::from_hex(hex) {
        return by_id(db, &id)?.ok_or_else(missing);
    }
    if let Ok(reference) = text.parse::<Reference>()
        && let Some(image) = by_name(db, &reference)?
    {
        return Ok(image);
    }
    let prefix =
        !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if !prefix {
        // What is neither gets the parser's reason.
        text.parse::<Reference>()?;
        return Err(missing());
    }
    let fail = |source| Error::database("look up the image", source);
    let from = format!("sha256:{hex}");
    let mut statement = db
        .prepare(&format!("SELECT {COLUMNS} FROM images WHERE id >= ?1 AND id < ?1 || 'g'"))
        .map_err(fail)?;
    let images = statement.query_map([from], read).map_err(fail)?;
    let mut images = images.collect::<rusqlite::Result<Vec<_>>>().map_err(fail)?;
    match (images.len(), images.pop()) {
        (1, Some(only)) => Ok(only),
        (0, _) => Err(missing()),
        (count, _) => Err(Error::AmbiguousImage { prefix: text.to_owned(), count }),
    }
}

fn one(db: &Connection, condition: &str, values: impl rusqlite::Params) -> Result<Option<Image>> {
    let sql = format!("SELECT {COLUMNS} FROM images WHERE {condition}");
    let found =
        db.prepare_cached(&sql).and_then(|mut statement| statement.query_row(values, read).optional());
    found.map_err(|source| Error::database("look up the image", source))
}

pub(super) fn by_id(db: &Connection, id: &Digest) -> Result<Option<Image>> {
    one(db, "id = ?1", [id.to_string()])
}

fn by_name(db: &Connection, name: &Reference) -> Result<Option<Image>> {
    // As with docker, a digest says it all, and a tag beside it is not looked at.
    match (name.digest(), name.tagged()) {
        (Some(digest), _) => one(
            db,
            "id IN (SELECT image FROM repo_digests WHERE name = ?1 AND digest = ?2)
             OR (manifest = ?2 AND id IN (SELECT image FROM tags WHERE name >= ?1 || ':' AND name < ?1 || ';'))",
            [name.name(), digest.to_string()],
        ),
        (None, Some(tagged)) => one(db, "id = (SELECT image FROM tags WHERE name = ?1)", [tagged]),
        (None, None) => Ok(None),
    }
}

fn remove(db: &Connection, text: &str, force: bool, saved: &HashMap<String, String>) -> Result<Vec<Removed>> {
    let fail = |source| Error::database("remove the image", source);
    let image = find(db, text)?;
    let id = image.id.to_string();
    let user: Option<String> = db
        .query_row("SELECT id FROM containers WHERE image = ?1 LIMIT 1", [&id], |row| row.get(0))
        .optional()
        .map_err(fail)?;
    let user = user
        .map(|container| format!("container {}", container.chars().take(12).collect::<String>()))
        .or_else(|| saved.get(&id).map(|name| format!("snapshot {name}")));
    let in_use = |user: &str| Error::ImageInUse {
        image: text.to_owned(),
        why: format!("{user} is made from it: remove that first"),
    };
    let names: i64 =
        db.query_row("SELECT count(*) FROM tags WHERE image = ?1", [&id], |row| row.get(0)).map_err(fail)?;
    let name = text.parse::<Reference>().ok().and_then(|name| name.tagged());
    let mut removed = Vec::new();
    if let Some(name) = name {
        let is_its_name: bool = db
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM tags WHERE name = ?1 AND image = ?2)",
                (&name, &id),
                |row| row.get(0),
            )
            .map_err(fail)?;
        if is_its_name {
            if let (1, Some(user), false) = (names, &user, force) {
                return Err(in_use(user));
            }
            db.execute("DELETE FROM tags WHERE name = ?1", [&name]).map_err(fail)?;
            removed.push(Removed::Untagged(name.parse::<Reference>()?.familiar()));
            if names > 1 || user.is_some() {
                return Ok(removed);
            }
        }
    }
    if let Some(user) = &user {
        return Err(in_use(user));
    }
    if removed.is_empty() && names > 1 && !force {
        let why = format!("it has {names} names: remove them one by one, or use --force");
        return Err(Error::ImageInUse { image: text.to_owned(), why });
    }
    delete(db, &image.id, &mut removed)?;
    Ok(removed)
}

fn delete(db: &Connection, id: &Digest, removed: &mut Vec<Removed>) -> Result<()> {
    let fail = |source| Error::database("remove the image", source);
    let mut statement = db.prepare("DELETE FROM tags WHERE image = ?1 RETURNING name").map_err(fail)?;
    let names = statement.query_map([id.to_string()], |row| row.get::<_, String>(0)).map_err(fail)?;
    for name in names {
        removed.push(Removed::Untagged(name.map_err(fail)?.parse::<Reference>()?.familiar()));
    }
    db.execute("DELETE FROM images WHERE id = ?1", [id.to_string()]).map_err(fail)?;
    removed.push(Removed::Deleted(*id));
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Image> {
    let bad =
        |column, error: Error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into());
    let digest = |column| row.get::<_, String>(column)?.parse().map_err(|error| bad(column, error));
    let config_json: String = row.get(2)?;
    Ok(Image {
        id: digest(0)?,
        manifest: digest(1)?,
        config: ImageConfig::parse(config_json.as_bytes()).map_err(|error| bad(2, error))?,
        config_json,
        size: row.get::<_, i64>(3)?.unsigned_abs(),
        loaded_ns: row.get(4)?,
    })
}
