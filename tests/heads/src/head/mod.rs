//! The parametric model: a mesh, and targets, each of which moves some of its vertices.

mod file;
pub(crate) mod hair;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::Error;
use crate::paint::{Marks, beard};
use crate::shape::{V3, extent, unit};

/// Heights of the chin and the crown before any target moves them.
pub(crate) const CHIN: f32 = 6.15;
pub(crate) const CROWN: f32 = 8.49;

/// A name, and which vertices are moved how far.
type Target = (String, Vec<(u32, V3)>);

/// What a triangle is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Material {
    /// Skin, with all that is painted on it: brows, lips, a beard, short hair.
    Skin,
    /// Eyeballs.
    Eye,
    /// Teeth.
    Teeth,
    /// Lashes.
    Lash,
    /// The tongue.
    Tongue,
    /// Hair that hangs.
    Hair,
    /// The collar and the shoulders.
    Cloth,
}

impl Material {
    fn of(code: u8) -> Option<Self> {
        use Material::{Cloth, Eye, Hair, Lash, Skin, Teeth, Tongue};
        [Skin, Eye, Teeth, Lash, Tongue, Hair, Cloth].get(usize::from(code)).copied()
    }

    /// Whether it is seen from behind, too.
    pub(crate) fn two_sided(self) -> bool {
        matches!(self, Self::Lash | Self::Hair)
    }
}

/// The model, with a net of hair added after its own vertices and triangles, and what can be told once of its vertices.
#[derive(Debug)]
pub struct Head {
    /// The model's own vertices, before any target moves them.
    pub(crate) rest: Vec<V3>,
    pub(crate) triangles: Vec<[u32; 3]>,
    pub(crate) materials: Vec<Material>,
    targets: Vec<Target>,
    places: BTreeMap<String, usize>,
    /// Of each vertex, those of the net included.
    pub(crate) marks: Vec<Marks>,
    pub(crate) teeth: Vec<usize>,
    /// The vertices above the neck.
    pub(crate) skull: Vec<usize>,
    /// The middles of the eyes: with x below 0, and above.
    pub(crate) eyes: [V3; 2],
}

impl Head {
    /// Reads the file of a head, of at most 64 MiB.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let broken = |reason: &str| Error::Head { path: path.into(), reason: reason.into() };
        let mut raw = file::read(path)?;
        // The file's hair is a rough hull.
        let kept = |index: &usize| raw.materials[*index] != Material::Hair;
        let kept: Vec<usize> = (0..raw.triangles.len()).filter(kept).collect();
        raw.triangles = kept.iter().map(|index| raw.triangles[*index]).collect();
        raw.materials = kept.iter().map(|index| raw.materials[*index]).collect();
        raw.uv = kept.iter().map(|index| raw.uv[*index]).collect();
        let marks = marks(&raw);
        let skull = (0..raw.vertices.len())
            .filter(|at| marks[*at].skin > 0.0 && raw.vertices[*at].y > CHIN);
        let skull: Vec<usize> = skull.collect();
        let (low, high) = extent(skull.iter().map(|at| raw.vertices[*at]));
        if high.y - low.y < 1.0 {
            return Err(broken("no skin between the heights of chin and crown"));
        }
        let eyes = vertices_of(&raw, Material::Eye);
        let middle = |side: f32| {
            let own = eyes.iter().map(|at| raw.vertices[*at]).filter(|point| point.x * side > 0.0);
            let (count, sum) = own.fold((0, V3::zeros()), |(n, sum), point| (n + 1, sum + point));
            (count > 0).then(|| sum / count as f32)
        };
        let (Some(left), Some(right)) = (middle(-1.0), middle(1.0)) else {
            return Err(broken("not an eye on each side"));
        };
        let places = raw.targets.iter().enumerate().map(|(at, (name, _))| (name.clone(), at));
        let places = places.collect();
        let teeth = vertices_of(&raw, Material::Teeth);
        let mut head = Self {
            rest: raw.vertices,
            triangles: raw.triangles,
            materials: raw.materials,
            targets: raw.targets,
            places,
            marks,
            teeth,
            skull,
            eyes: [left, right],
        };
        head.add_net();
        Ok(head)
    }

    fn add_net(&mut self) {
        let first = self.rest.len() as u32;
        let net = hair::triangles().into_iter().map(|corners| corners.map(|at| first + at));
        self.triangles.extend(net);
        self.materials.resize(self.triangles.len(), Material::Hair);
        self.marks.extend(hair::net().map(|(angle, part)| {
            let around = V3::new(libm::sinf(angle), 8.0 - 3.0 * part, 0.4 + libm::cosf(angle));
            Marks { rest: around, ..Marks::default() }
        }));
    }

    /// The names of the targets, in the order of the file.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(|(name, _)| name.as_str())
    }

    /// Moves points, which are the vertices in their order, by some of the way of a target. One that the file lacks moves nothing.
    pub(crate) fn moved(&self, points: &mut [V3], target: &str, weight: f32) {
        if let Some(place) = self.places.get(target) {
            for (index, way) in &self.targets[*place].1 {
                points[*index as usize] += way * weight;
            }
        }
    }

    /// Of each point, the mean direction of the triangles around it.
    pub(crate) fn normals(&self, points: &[V3]) -> Vec<V3> {
        let mut normals = vec![V3::zeros(); points.len()];
        for corners in &self.triangles {
            let [a, b, c] = corners.map(|at| points[at as usize]);
            let across = (b - a).cross(&(c - a));
            corners.iter().for_each(|at| normals[*at as usize] += across);
        }
        normals.into_iter().map(unit).collect()
    }
}

fn vertices_of(raw: &file::Raw, material: Material) -> Vec<usize> {
    let own = raw.triangles.iter().zip(&raw.materials).filter(|(_, own)| **own == material);
    let found: BTreeSet<usize> =
        own.flat_map(|(corners, _)| corners.map(|at| at as usize)).collect();
    found.into_iter().collect()
}

/// Of each vertex what is painted where.
fn marks(raw: &file::Raw) -> Vec<Marks> {
    let bare = |rest: &V3| Marks { rest: *rest, ..Marks::default() };
    let mut marks: Vec<_> = raw.vertices.iter().map(bare).collect();
    let skin = |at: &usize| raw.materials[*at] == Material::Skin;
    for triangle in (0..raw.triangles.len()).filter(skin) {
        for (vertex, uv) in raw.triangles[triangle].iter().zip(raw.uv[triangle]) {
            let marks = &mut marks[*vertex as usize];
            let [ears, lips, eyelids, inside] = raw.masks.each_ref().map(|mask| mask.at(uv));
            let beard = beard(marks.rest) * (1.0 - ears) * (1.0 - lips) * (1.0 - inside);
            *marks = Marks { rest: marks.rest, skin: 1.0, ears, lips, eyelids, inside, beard };
        }
    }
    marks
}
