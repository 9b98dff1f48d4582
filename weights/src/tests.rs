//! Laws of the readers and writers: any bytes are read or refused, and what is written is read back.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::checksum::CHECKSUM_KEY;
use crate::{Bundle, Checkpoint, FloatDtype, Manifest, Part, save_bundle, write_safetensors};

/// Opens a file and reads everything in it. No tensor may have more bytes than the file, but for a few that
/// repeat numbers.
fn read(path: &Path) -> crate::Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    let most = 64 << 20;
    checkpoint.fingerprint();
    for (name, info) in checkpoint.tensors() {
        let (values, shape) = checkpoint.read_f32(name)?;
        assert_eq!((values.len(), &shape), (shape.iter().product(), &info.shape));
        assert!(values.len() * info.dtype.size() <= most);
    }
    Ok(())
}

/// A checkpoint can be kept, and read from several threads.
const _: fn(Checkpoint) = |checkpoint| {
    fn shared(_: impl Send + Sync) {}
    shared(checkpoint);
};

/// How files of the formats start.
const STARTS: [&[u8]; 5] =
    [b"", b"PK\x03\x04", b"\x80\x02", b"\x02\0\0\0\0\0\0\0{}", b"GGUF\x03\0\0\0"];

/// Numbers that sizes and offsets are made of.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..9u64, 1 => Just(u64::MAX), 1 => Just(1 << 40), 1 => any::<u64>()]
}

/// Headers of safetensors files, right and wrong.
fn header() -> impl Strategy<Value = String> {
    let dtype = prop::sample::select(vec!["F32", "F16", "BF16", "I64", "U8", "BOOL", "F4", "?"]);
    let offsets = prop::collection::vec(number(), 1..4);
    let tensor = (dtype, prop::collection::vec(number(), 0..4), offsets);
    let entries = prop::collection::vec(("[ab]|__metadata__", tensor), 0..4);
    entries.prop_map(|entries| {
        let entry = |(name, (dtype, shape, offsets)): (String, _)| {
            let (dtype, shape, offsets): (&str, Vec<u64>, Vec<u64>) = (dtype, shape, offsets);
            let tensor = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
            format!("{}:{tensor}", json!(name))
        };
        format!("{{{}}}", entries.into_iter().map(entry).collect::<Vec<_>>().join(","))
    })
}

/// Opcodes of pickles with arguments that mean something to them.
fn pickle() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::sample::select(vec![
        &b"X\x05\0\0\0model"[..],
        b"X\x07\0\0\0storage",
        b"X\x01\0\0\x000",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"cposix\nsystem\n",
        b"K\x02",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"h\0",
        b"q\0",
    ])
    .prop_map(<[u8]>::to_vec);
    let code = prop::sample::select(b"(}]).tRQusbe0aN\x85\x86\x87\x88\x89".to_vec());
    let step = prop_oneof![
        2 => text,
        2 => code.prop_map(|code| vec![code]),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(step, 0..40).prop_map(|steps| [b"\x80\x02", &*steps.concat()].concat())
}

/// A few tensors of all types that have bits in every order.
fn tensors() -> impl Strategy<Value = BTreeMap<String, TensorData>> {
    let types = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32];
    let types = prop::sample::select([&types[..], &[DType::I16, DType::I8, DType::U8]].concat());
    let shape = prop::collection::vec(0..4usize, 0..4);
    let tensor = (types, shape).prop_flat_map(|(dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        prop::collection::vec(any::<u8>(), bytes)
            .prop_map(move |bytes| TensorData::from_bytes_vec(bytes, shape.clone(), dtype))
    });
    prop::collection::btree_map(".{0,8}", tensor, 0..5)
}

#[derive(Module, Debug)]
struct Net {
    weight: Param<Tensor<2>>,
}

impl Net {
    fn new(values: TensorData) -> Self {
        Self { weight: Param::from_tensor(Tensor::from_data(values, &Device::flex())) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..256),
        start in prop::sample::select(STARTS.to_vec()),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["a.safetensors", "a.safetensors.index.json", "a.pt"] {
            let path = folder.path().join(name);
            std::fs::write(&path, [start, &bytes].concat()).expect("written");
            let _ = read(&path);
        }
    }

    #[test]
    fn any_header_is_read_or_refused(header in header(), data in 0..40usize, lie in -2..3i64) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let length = (header.len() as u64).saturating_add_signed(lie / 2);
        let bytes = [&length.to_le_bytes(), header.as_bytes(), &vec![0x7f; data]].concat();
        std::fs::write(&path, bytes).expect("written");
        let _ = read(&path);
    }

    #[test]
    fn any_pickle_is_read_or_refused(pickle in pickle()) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.pt");
        std::fs::write(&path, pickle).expect("written");
        let _ = read(&path);
    }

    /// Only the index that tells the truth is read.
    #[test]
    fn an_index_is_read_if_it_is_true(
        truth in prop::collection::btree_map("[abc]", "[12]", 0..4),
        lies in prop::collection::btree_map("[abc]", "[12]|\\.\\./1", 0..3),
    ) {
        let claims: BTreeMap<_, _> = truth.clone().into_iter().chain(lies).collect();
        let folder = tempfile::tempdir().expect("a folder");
        for shard in ["1", "2"] {
            let names = truth.iter().filter(|(_, place)| *place == shard).map(|(name, _)| name);
            let value = |name: &String| (name.clone(), TensorData::new(vec![1.0f32], [1]));
            let path = folder.path().join(format!("{shard}.safetensors"));
            let tensors: Vec<_> = names.map(value).collect();
            write_safetensors(&path, &tensors, &BTreeMap::new()).expect("written");
        }
        let path = folder.path().join("a.json");
        let file = |shard: &String| json!(format!("{shard}.safetensors"));
        let map = claims.iter().map(|(name, shard)| (name.clone(), file(shard)));
        let map: serde_json::Map<String, Value> = map.collect();
        std::fs::write(&path, json!({ "weight_map": map }).to_string()).expect("written");
        // A shard that is not named is not looked at.
        let named = |(_, shard): &(&String, &String)| claims.values().any(|claim| claim == *shard);
        let seen: BTreeMap<_, _> = truth.iter().filter(named).collect();
        prop_assert_eq!(read(&path).is_ok(), claims.iter().collect::<BTreeMap<_, _>>() == seen);
    }

    #[test]
    fn any_manifest_is_read_or_refused(
        version in prop_oneof![9 => Just(1u64), 1 => number()],
        file in prop_oneof![9 => "net\\.safetensors", 1 => "\\.\\./net|[./\\\\]{0,3}|/etc/passwd"],
        bytes in prop_oneof![1 => Just(None), 1 => number().prop_map(Some)],
        sha256 in "[0-9a-f]{0,64}",
        dtype in prop_oneof![9 => "f16|f32", 1 => "int8"],
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let tensor = ("a".to_owned(), TensorData::new(vec![1.0f32], [1]));
        let part = folder.path().join("net.safetensors");
        write_safetensors(&part, &[tensor], &BTreeMap::new()).expect("written");
        let size = std::fs::metadata(&part).expect("a file").len();
        let bytes = bytes.unwrap_or(size);
        let named = (version, file.as_str(), bytes) == (1, "net.safetensors", size);
        let right = named && dtype != "int8";
        let part = json!({ "file": file, "bytes": bytes, "sha256": sha256, "dtype": dtype });
        let manifest = json!({
            "format": "pyrograph",
            "version": version,
            "family": "test",
            "config": {},
            "parts": { "net": part },
        });
        std::fs::write(folder.path().join("model.json"), manifest.to_string()).expect("written");
        match Bundle::open(folder.path()) {
            Ok(bundle) => {
                prop_assert!(right && bundle.verify("net").is_err());
                prop_assert!(bundle.checkpoint("net").is_ok());
            }
            Err(_) => prop_assert!(!right),
        }
    }

    #[test]
    fn what_is_written_is_read_back_bit_for_bit(
        tensors in tensors(),
        metadata in prop::collection::btree_map(".{0,8}", ".{0,16}", 0..3),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let listed: Vec<_> = tensors.clone().into_iter().collect();
        write_safetensors(&path, &listed, &metadata).expect("written");
        let file = Checkpoint::open(&path).expect("what was written");
        let mut texts = file.metadata().clone();
        prop_assert!(texts.remove(CHECKSUM_KEY).is_some());
        prop_assert_eq!(&texts, &metadata);
        prop_assert!(file.tensors().keys().eq(tensors.keys()));
        for (name, data) in &tensors {
            let info = file.info(name).expect("there");
            prop_assert_eq!(&info.shape[..], &data.shape()[..]);
            prop_assert_eq!(info.dtype.to_string(), format!("{:?}", data.dtype()).to_lowercase());
            prop_assert_eq!(file.read(name).expect("there"), data.as_bytes());
        }
    }

    /// Weights that are loaded in the type they are stored in, and saved again, are the same file.
    #[test]
    fn a_bundle_survives_loading_and_saving(
        bits in prop::collection::vec(any::<u32>(), 12),
        dtype in prop::sample::select(vec![FloatDtype::F32, FloatDtype::F16, FloatDtype::Bf16]),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let save = |name: &str, net: &Net| {
            let path = folder.path().join(name);
            let manifest = Manifest::new("test", &()).expect("JSON");
            let parts = vec![("net", Part::module(net))];
            save_bundle(&path, manifest, parts, dtype, false).expect("saved");
            Bundle::open(&path).expect("a bundle")
        };
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let first = save("first", &Net::new(TensorData::new(values, [3, 4])));
        first.verify("net").expect("whole");
        let blank = Net::new(TensorData::new(vec![0.0f32; 12], [3, 4]));
        let (net, report) = first.load("net", blank, dtype, &Device::flex()).expect("fits");
        let file = first.checkpoint("net").expect("a part");
        let (stored, _) = file.read_f32("weight").expect("there");
        prop_assert_eq!(report.not_finite.is_empty(), stored.iter().all(|value| value.is_finite()));
        let second = save("second", &net);
        prop_assert_eq!(&first.manifest().parts, &second.manifest().parts);
    }
}

#[test]
fn no_flipped_bit_goes_unseen() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.safetensors");
    let tensors = [
        ("a".to_owned(), TensorData::new(vec![1.5f32, -2.0, 0.25], [3])),
        ("b".to_owned(), TensorData::new(vec![7i64], [1])),
    ];
    let texts = BTreeMap::from([("step".to_owned(), "12".to_owned())]);
    write_safetensors(&path, &tensors, &texts).expect("written");
    let whole = std::fs::read(&path).expect("a file");
    assert!(Checkpoint::open(&path).expect("whole").verify().expect("whole"));
    let content = || -> crate::Result<(bool, Vec<Vec<f32>>, Option<String>)> {
        let file = Checkpoint::open(&path)?;
        let is_sealed = file.verify()?;
        let values = file.tensors().keys().map(|name| Ok(file.read_f32(name)?.0));
        Ok((is_sealed, values.collect::<crate::Result<_>>()?, file.metadata().get("step").cloned()))
    };
    let (_, values, step) = content().expect("whole");
    for bit in 0..8 * whole.len() {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, flipped).expect("written");
        // Spaces between the parts of the header mean nothing, and without its name there is no checksum.
        if let Ok((is_sealed, found, text)) = content() {
            assert!(found == values && (text == step || !is_sealed), "bit {bit} was not seen");
        }
    }
}
