//! What an archive holds: from its index, or from the `manifest.json` of `docker save`, to images whose objects are all there
//! and all have the digest and the size they should. (OCI image specification, `image-layout.md`, `image-index.md`, `manifest.md`.)

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;

use super::archive::{Archive, Blob, verify};
use super::objects::{Objects, json_of};
use super::{Compression, Digest, ImageConfig, Platform, Reference};
use crate::{Error, Result};

/// Deepest nesting of indexes.
const DEPTH_MAX: usize = 8;
/// Most descriptors looked at in one archive.
const DESCRIPTORS_MAX: usize = 4096;
/// Most layers of one image.
const LAYERS_MAX: usize = 1000;

const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const ATTESTATION: &str = "vnd.docker.reference.type";

/// An image found in an archive. What its layers decompress to is not yet checked.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) names: Vec<Reference>,
    pub(super) manifest: Blob,
    pub(super) config: Blob,
    pub(super) config_json: Vec<u8>,
    /// The lowest first: the blob and the digest of its uncompressed bytes.
    pub(super) layers: Vec<(Blob, Digest)>,
    /// The repository it was pulled from, and the digest of what its name led to there.
    pub(super) pulled: Option<(String, Digest)>,
}

/// An element of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// All images of an archive that fit the platform.
pub(super) fn find(archive: &mut Archive<'_>, platform: &Platform) -> Result<Vec<Found>> {
    let saved = match archive.file("manifest.json")? {
        Some(blob) => {
            let what = "manifest.json";
            let json = json_of(&blob, what)?;
            serde_json::from_slice(&json).map_err(|source| Error::Json { what: what.into(), source })?
        }
        None => Vec::<Saved>::new(),
    };
    if saved.len() > DESCRIPTORS_MAX {
        return Err(Error::Limit {
            what: "manifest.json".into(),
            limit: format!("{DESCRIPTORS_MAX} images"),
        });
    }
    let mut found = match archive.file("index.json")? {
        Some(blob) => {
            // Both forms describe the same images; the index has the digests, the other one the tags.
            let mut found = Walk { objects: archive, platform, seen: 0 }.top(&blob)?;
            for image in &mut found {
                for item in &saved {
                    if archive.file(&item.config)?.is_some_and(|config| config.digest == image.config.digest)
                    {
                        add_names(&mut image.names, item.repo_tags.iter().flatten())?;
                    }
                }
            }
            found
        }
        None => saved.iter().map(|item| from_saved(archive, item)).collect::<Result<_>>()?,
    };
    if found.is_empty() {
        let old = archive.file("repositories")?.is_some();
        return Err(archive.bad(if old {
            "it was saved by a docker older than 1.10 (it has no manifest.json): load and save it with a newer one".into()
        } else {
            "it has neither index.json (an OCI layout) nor manifest.json (docker save)".into()
        }));
    }
    merge(&mut found);
    Ok(found)
}

/// The same image under several names is one image.
fn merge(found: &mut Vec<Found>) {
    let mut at: HashMap<Digest, usize> = HashMap::new();
    let mut merged: Vec<Found> = Vec::new();
    for image in found.drain(..) {
        match at.get(&image.config.digest).and_then(|at| merged.get_mut(*at)) {
            Some(first) => {
                for name in image.names {
                    if !first.names.contains(&name) {
                        first.names.push(name);
                    }
                }
            }
            None => {
                at.insert(image.config.digest, merged.len());
                merged.push(image);
            }
        }
    }
    *found = merged;
}

fn add_names<'a>(names: &mut Vec<Reference>, more: impl Iterator<Item = &'a String>) -> Result<()> {
    for name in more {
        let name: Reference = name.parse()?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(())
}

fn from_saved(archive: &mut Archive<'_>, item: &Saved) -> Result<Found> {
    let missing = |name: &str, archive: &Archive<'_>| Error::Missing {
        what: name.to_owned(),
        place: archive.place.clone(),
    };
    let config = archive.file(&item.config)?.ok_or_else(|| missing(&item.config, archive))?;
    // The name of the config is its digest, be it HEX.json or blobs/sha256/HEX.
    let stem = item.config.rsplit('/').next().unwrap_or_default();
    if let Some(expected) = Digest::from_hex(stem.strip_suffix(".json").unwrap_or(stem)) {
        verify(&config, &expected, None, &item.config)?;
    }
    let names = item.layers.as_deref().unwrap_or_default();
    let mut layers = Vec::new();
    for name in names.iter().take(LAYERS_MAX + 1) {
        layers.push(archive.file(name)?.ok_or_else(|| missing(name, archive))?);
    }
    let manifest = archive.add(&manifest_of(&config, &layers)?)?;
    let mut names = Vec::new();
    add_names(&mut names, item.repo_tags.iter().flatten())?;
    complete(archive, names, manifest, config, layers)
}

/// The OCI manifest of an image that came without one.
pub(super) fn manifest_of(config: &Blob, layers: &[Blob]) -> Result<Vec<u8>> {
    let mut described = Vec::new();
    for layer in layers {
        let media_type = media_type_of(layer)?;
        described.push(serde_json::json!({
            "mediaType": media_type, "digest": layer.digest.to_string(), "size": layer.size,
        }));
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest.to_string(), "size": config.size,
        },
        "layers": described,
    });
    Ok(manifest.to_string().into_bytes())
}

fn media_type_of(layer: &Blob) -> Result<&'static str> {
    use std::io::Read;
    let mut start = Vec::with_capacity(8);
    let read = std::fs::File::open(&layer.path).and_then(|file| file.take(8).read_to_end(&mut start));
    read.map_err(|source| Error::io("read", &layer.path, source))?;
    let compression =
        Compression::of(&start).map_err(|source| Error::Layer { layer: layer.digest, source })?;
    Ok(compression.media_type())
}

/// Pairs the layers with the config's diff ids.
fn complete(
    objects: &(impl Objects + ?Sized),
    names: Vec<Reference>,
    manifest: Blob,
    config: Blob,
    layers: Vec<Blob>,
) -> Result<Found> {
    let config_json = json_of(&config, "the config")?;
    let parsed = ImageConfig::parse(&config_json)?;
    if layers.len() > LAYERS_MAX {
        return Err(Error::Limit { what: format!("{} layers", layers.len()), limit: LAYERS_MAX.to_string() });
    }
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        return Err(objects.bad(format!(
            "the image has {} layers, and its config speaks of {}",
            layers.len(),
            diff_ids.len()
        )));
    }
    let mut paired = Vec::new();
    for (layer, diff_id) in layers.into_iter().zip(diff_ids) {
        paired.push((layer, diff_id.parse()?));
    }
    Ok(Found { names, manifest, config, config_json, layers: paired, pulled: None })
}

/// The walk through indexes.
pub(super) struct Walk<'a, O> {
    pub(super) objects: &'a mut O,
    pub(super) platform: &'a Platform,
    pub(super) seen: usize,
}

/// What an index offered and why it was not taken, for the error.
type Offers = Vec<String>;

impl<O: Objects> Walk<'_, O> {
    fn top(&mut self, blob: &Blob) -> Result<Vec<Found>> {
        let index = parse_index(blob, "index.json")?;
        // Descriptors of one name are the platforms of one image; nameless ones with a platform are too.
        let mut groups: Vec<(Vec<Reference>, Vec<&Descriptor>)> = Vec::new();
        for descriptor in index.manifests() {
            let names = names_of(descriptor);
            let alone = names.is_empty() && descriptor.platform().is_none();
            match groups.iter_mut().find(|(known, _)| !alone && *known == names) {
                Some((_, group)) => group.push(descriptor),
                None => groups.push((names, vec![descriptor])),
            }
        }
        let mut found = Vec::new();
        for (names, group) in groups {
            if let [only] = group.as_slice()
                && is_manifest(only)
                && !is_attestation(only)
            {
                // Whoever names one manifest means it, whatever its platform is.
                found.push(self.manifest(only, names)?);
                continue;
            }
            let mut offers = Offers::new();
            match self.choose(&group, 0, &mut offers)? {
                Some((_, chosen)) => found.push(self.manifest(&chosen, names)?),
                None if offers.is_empty() => {}
                None => return Err(self.no_platform(&offers)),
            }
        }
        if found.is_empty() {
            return Err(self.objects.bad("its index lists no image".into()));
        }
        Ok(found)
    }

    /// The manifest that fits the platform best, nested indexes included.
    fn choose(
        &mut self,
        offered: &[&Descriptor],
        depth: usize,
        offers: &mut Offers,
    ) -> Result<Option<(u8, Descriptor)>> {
        let mut best: Option<(u8, Descriptor)> = None;
        for descriptor in offered {
            self.seen += 1;
            if self.seen > DESCRIPTORS_MAX || depth > DEPTH_MAX {
                return Err(Error::Limit {
                    what: "the index".into(),
                    limit: format!("{DESCRIPTORS_MAX} descriptors, nested {DEPTH_MAX} deep"),
                });
            }
            if is_attestation(descriptor) {
                continue;
            }
            let candidate = if is_index(descriptor) {
                // An index for another platform need not be there at all.
                if self.fit(descriptor, offers).is_none() {
                    continue;
                }
                let blob = self.objects.object(descriptor, "the index")?;
                let nested = parse_index(&blob, "the index")?;
                let nested: Vec<_> = nested.manifests().iter().collect();
                self.choose(&nested, depth + 1, offers)?
            } else if !is_manifest(descriptor) {
                None
            } else if descriptor.platform().is_some() {
                self.fit(descriptor, offers).map(|fit| (fit, (*descriptor).clone()))
            } else {
                self.fit_by_config(descriptor, offers)?.map(|fit| (fit, (*descriptor).clone()))
            };
            if let Some((fit, descriptor)) = candidate
                && best.as_ref().is_none_or(|(best, _)| fit > *best)
            {
                best = Some((fit, descriptor));
            }
        }
        Ok(best)
    }

    /// How well a descriptor's platform fits; one without a platform may be anything.
    fn fit(&self, descriptor: &Descriptor, offers: &mut Offers) -> Option<u8> {
        let Some(offered) = descriptor.platform() else { return Some(1) };
        let (os, architecture) = (offered.os().to_string(), offered.architecture().to_string());
        let variant = offered.variant().clone().unwrap_or_default();
        let fit = self.platform.fit(&os, &architecture, &variant);
        if fit.is_none() {
            offers.push(Platform { os, architecture, variant }.to_string());
        }
        fit
    }

    fn fit_by_config(&mut self, descriptor: &Descriptor, offers: &mut Offers) -> Result<Option<u8>> {
        let (_, _, config) = self.head(descriptor)?;
        Ok(self.fit_of(&ImageConfig::parse(&json_of(&config, "the config")?)?, offers))
    }

    /// How well an image fits.
    fn fit_of(&self, config: &ImageConfig, offers: &mut Offers) -> Option<u8> {
        let fit = self.platform.fit(&config.os, &config.architecture, &config.variant);
        if fit.is_none() {
            let ImageConfig { os, architecture, variant, .. } = config.clone();
            offers.push(Platform { os, architecture, variant }.to_string());
        }
        fit
    }

    /// The manifest that an index has for the platform, or this manifest itself if it fits; `any` takes it even if it does not.
    pub(super) fn pick(&mut self, top: &Descriptor, any: bool) -> Result<Descriptor> {
        let mut offers = Offers::new();
        if is_index(top) {
            let blob = self.objects.object(top, "the index")?;
            let index = parse_index(&blob, "the index")?;
            let offered: Vec<_> = index.manifests().iter().collect();
            return match self.choose(&offered, 0, &mut offers)? {
                Some((_, chosen)) => Ok(chosen),
                None if offers.is_empty() => Err(self.objects.bad("its index lists no image".into())),
                None => Err(self.no_platform(&offers)),
            };
        }
        if !is_manifest(top) {
            return Err(Error::Unsupported { what: format!("a manifest of the type {}", top.media_type()) });
        }
        if !any && self.fit_by_config(top, &mut offers)?.is_none() {
            return Err(self.no_platform(&offers));
        }
        Ok(top.clone())
    }

    fn no_platform(&self, offers: &Offers) -> Error {
        Error::NoPlatform {
            place: self.objects.place().to_owned(),
            wanted: self.platform.to_string(),
            present: offers.join(", "),
        }
    }

    /// Reads a manifest and its config.
    pub(super) fn head(&mut self, descriptor: &Descriptor) -> Result<(Blob, ImageManifest, Blob)> {
        let blob = self.objects.object(descriptor, "the manifest")?;
        let json = json_of(&blob, "the manifest")?;
        let manifest: ImageManifest = serde_json::from_slice(&json)
            .map_err(|source| Error::Json { what: format!("the manifest {}", blob.digest), source })?;
        if manifest.media_type().as_ref().is_some_and(|own| own != descriptor.media_type()) {
            return Err(self
                .objects
                .bad(format!("the manifest {} is not of the type its descriptor says", blob.digest)));
        }
        let config_type = manifest.config().media_type().to_string();
        if manifest.artifact_type().is_some()
            || !matches!(
                config_type.as_str(),
                "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
            )
        {
            return Err(Error::Unsupported {
                what: format!("an artifact that is no image (its config is {config_type})"),
            });
        }
        if manifest.layers().len() > LAYERS_MAX {
            let what = format!("{} layers", manifest.layers().len());
            return Err(Error::Limit { what, limit: LAYERS_MAX.to_string() });
        }
        let config = self.objects.object(manifest.config(), "the config")?;
        Ok((blob, manifest, config))
    }

    /// Reads a manifest and all it refers to.
    pub(super) fn manifest(&mut self, descriptor: &Descriptor, names: Vec<Reference>) -> Result<Found> {
        let (blob, manifest, config) = self.head(descriptor)?;
        let layers = self.objects.layers(manifest.layers())?;
        complete(self.objects, names, blob, config, layers)
    }
}

fn parse_index(blob: &Blob, what: &str) -> Result<ImageIndex> {
    let json = json_of(blob, what)?;
    serde_json::from_slice(&json).map_err(|source| Error::Json { what: what.into(), source })
}

pub(super) fn is_index(descriptor: &Descriptor) -> bool {
    match descriptor.media_type() {
        MediaType::ImageIndex => true,
        other => other.to_string() == "application/vnd.docker.distribution.manifest.list.v2+json",
    }
}

pub(super) fn is_manifest(descriptor: &Descriptor) -> bool {
    match descriptor.media_type() {
        MediaType::ImageManifest => true,
        other => other.to_string() == "application/vnd.docker.distribution.manifest.v2+json",
    }
}

/// BuildKit lists its attestations as manifests of the platform unknown/unknown.
fn is_attestation(descriptor: &Descriptor) -> bool {
    let annotated =
        descriptor.annotations().as_ref().is_some_and(|annotations| annotations.contains_key(ATTESTATION));
    let unknown = descriptor.platform().as_ref().is_some_and(|platform| {
        platform.os().to_string() == "unknown" && platform.architecture().to_string() == "unknown"
    });
    annotated || unknown
}

/// The names that annotations give. A bare tag is no name.
fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let annotation = |key| descriptor.annotations().as_ref().and_then(|annotations| annotations.get(key));
    let full = annotation(FULL_NAME).and_then(|name| name.parse().ok());
    let short =
        annotation(REF_NAME).filter(|name| name.contains([':', '/'])).and_then(|name| name.parse().ok());
    full.or(short).into_iter().collect()
}
