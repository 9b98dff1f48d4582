//! The built program, as a user runs it.

use std::path::Path;

use pyrograph_weights::Checkpoint;

use crate::command::TestCommand;
use crate::util::{
    Case, assert_close, assert_same_pixels, assets, cases, device, device_name, json, text,
    tolerance,
};

fn assert_same_picture(a: &Path, b: &Path) {
    let pixels = |path: &Path| image::open(path).expect("a picture").into_rgb8();
    assert_same_pixels(&format!("{} and {}", a.display(), b.display()), &pixels(a), &pixels(b));
}

#[test]
fn a_golden_pipeline_through_the_command_line() {
    for golden in cases("dit-pipeline") {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = json(&golden.join("case.json"));
        let classes: Vec<String> = settings["classes"]
            .as_array()
            .expect("classes")
            .iter()
            .map(ToString::to_string)
            .collect();
        let case = Case::open(&golden);
        let noise: burn::tensor::Tensor<4> = case.tensor("pipe_noise", &device());
        let tensors = [("noise".to_owned(), noise.into_data())];
        let file = folder.path().join("noise.safetensors");
        pyrograph_weights::write_safetensors(&file, &tensors, &Default::default())
            .expect("written");
        TestCommand::new(&folder, ["generate", "class", "-m", text(&golden)])
            .args(["--class", &classes.join(",")])
            .args(["--noise", "noise.safetensors", "--save-latents", "latents.safetensors"])
            .args(["--steps", &settings["steps"].to_string()])
            .args(["--cfg-scale", &settings["guidance_scale"].to_string()])
            .args(["-o", "%02d.png", "--seed", "0"])
            .succeeded();
        let saved = Checkpoint::open(folder.path().join("latents.safetensors")).expect("latents");
        let (values, shape) = saved.read_f32("trajectory").expect("a trajectory");
        let shape: [usize; 5] = shape.try_into().expect("five dimensions");
        let found = burn::tensor::Tensor::<5>::from_data(
            burn::tensor::TensorData::new(values, shape),
            &device(),
        );
        let expected = case.tensor("pipe_latents_per_step", &device());
        assert_close("trajectory", found, expected, tolerance(1e-4));

        let reference: burn::tensor::Tensor<4> = case.tensor("pipe_image", &device());
        let reference: Vec<f32> = reference.into_data().try_to_vec().expect("floats");
        let pixels: Vec<f32> = (0..classes.len())
            .flat_map(|i| {
                let path = folder.path().join(format!("{i:02}.png"));
                image::open(path).expect("a picture").into_rgb8().into_raw()
            })
            .map(|level| f32::from(level) / 255.0)
            .collect();
        let worst = pixels.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-3 + 0.5 / 255.0, "8-bit pictures differ by {worst}");
    }
}

#[test]
fn an_original_checkpoint_through_inspect_and_convert() {
    for golden in cases("dit-original") {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = golden.join("checkpoint.pt");
        let described =
            TestCommand::new(&folder, ["inspect", text(&checkpoint), "--json"]).succeeded();
        let described: serde_json::Value = serde_json::from_str(&described).expect("JSON");
        let config = json(&golden.join("config.json"));
        assert_eq!(described["config"]["net"]["hidden"], config["hidden_size"]);
        assert_eq!(described["config"]["net"]["heads"], config["num_heads"]);

        let alone = ["generate", "class", "-m", text(&checkpoint), "--class", "0", "--steps", "3"];
        assert!(TestCommand::new(&folder, alone).failed().contains("--vae"));

        let vae = cases("dit-pipeline")[0].join("vae");
        let convert =
            ["convert", text(&checkpoint), "-o", "native", "--dtype", "f32", "--vae", text(&vae)];
        TestCommand::new(&folder, convert).succeeded();
        assert!(TestCommand::new(&folder, convert).failed().contains("exists"));
        TestCommand::new(&folder, alone)
            .args(["--vae", text(&vae), "--seed", "4", "-o", "original.webp"])
            .succeeded();
        let native = ["generate", "class", "-m", "native", "--class", "0", "--steps", "3"];
        TestCommand::new(&folder, native).args(["--seed", "4", "-o", "native.webp"]).succeeded();
        assert_same_picture(
            &folder.path().join("original.webp"),
            &folder.path().join("native.webp"),
        );
    }
}

#[test]
fn same_seed_same_bytes() {
    let golden = &cases("dit-pipeline")[0];
    let folder = tempfile::tempdir().expect("a folder");
    let generate = |extra: &[&str]| {
        let common = ["generate", "class", "-m", text(golden), "--steps", "3", "--class", "5"];
        TestCommand::new(&folder, common).args(extra).succeeded();
    };
    generate(&["-n", "4", "--seed", "9", "--batch-size", "4", "-o", "four-%d.png"]);
    generate(&["-n", "4", "--seed", "9", "--batch-size", "1", "-o", "one-%d.png"]);
    generate(&["-n", "4", "--seed", "9", "--threads", "1", "-o", "thread-%d.png"]);
    generate(&["--seed", "11", "-o", "single.png"]);
    generate(&["--seed", "12", "-o", "other.png"]);
    let same =
        |a: &str, b: &str| assert_same_picture(&folder.path().join(a), &folder.path().join(b));
    for i in 0..4 {
        same(&format!("four-{i}.png"), &format!("one-{i}.png"));
        same(&format!("four-{i}.png"), &format!("thread-{i}.png"));
    }
    same("single.png", "four-2.png");
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).expect(name);
    assert_ne!(bytes("single.png"), bytes("other.png"));

    // The settings inside a picture make it again; on the CPU, byte for byte.
    TestCommand::new(&folder, ["generate", "class", "-m", text(golden)])
        .args(["--from-metadata", "single.png", "-o", "again.png"])
        .succeeded();
    same("single.png", "again.png");
    assert!(tolerance(0.0) > 0.0 || bytes("single.png") == bytes("again.png"));
    let told = TestCommand::new(&folder, ["metadata", "single.png"]).succeeded();
    assert!(told.contains("Seed: 11") && told.contains("Steps: 3"), "{told}");
    assert!(told.contains("\"calls\"") && told.contains("\"gmacs\""), "{told}");
}

/// What else a picture was made with, and what is no longer there.
#[test]
fn pictures_remember_their_guide_and_type() {
    let golden = &cases("dit-pipeline")[0];
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["generate", "class", "-m", text(golden)];
    let made = |extra: &[&str]| TestCommand::new(&folder, base).args(extra);
    let options = ["--class", "5", "--steps", "2", "--seed", "3", "--cfg-scale", "3"];
    let with = |extra: &[&str]| made(&options).args(extra).succeeded();
    // Guided by itself there is no guidance.
    with(&["--guide-model", text(golden), "--dtype", "f16", "-o", "guided.png"]);
    with(&["--dtype", "f16", "-o", "plain.png"]);
    let again = made(&["--from-metadata", "guided.png", "-o", "again.png"]).reported();
    assert!(!again.contains("warning"));
    let path = |name: &str| folder.path().join(name);
    assert_same_picture(&path("guided.png"), &path("again.png"));
    let bytes = |name: &str| std::fs::read(path(name)).expect(name);
    assert_ne!(bytes("guided.png"), bytes("plain.png"));
    let told = TestCommand::new(&folder, ["metadata", "again.png"]).succeeded();
    assert!(told.contains("\"f16\""), "{told}");

    let other =
        ["generate", "class", "--from-metadata", "plain.png", "-o", "o.png", "-m", "emoji-class"];
    let refused = TestCommand::new(&folder, other).failed();
    assert!(refused.contains("was made by weights") && refused.contains("schedule of timesteps"));
    let warned = TestCommand::new(&folder, other).args(["--scheduler", "karras"]).reported();
    assert!(warned.contains("was made by weights"));
    assert!(made(&["--cfg-interval", "2,1"]).misused().contains("LO up to HI"));
}

#[test]
fn mistakes_are_named_and_leave_no_files() {
    let golden = &cases("dit-pipeline")[0];
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["generate", "class", "-m", text(golden), "--steps", "2"];
    let with = |extra: &[&str]| TestCommand::new(&folder, base).args(extra).failed();
    assert!(with(&["--class", "1000"]).contains("1000"));
    assert!(with(&["--class", "unicorn"]).contains("unicorn"));
    assert!(with(&["--class", "1", "--sampler", "plms"]).contains("dpmpp_2m"));
    assert!(with(&["--class", "1", "-W", "65"]).contains("65"));
    assert!(with(&["--class", "1", "-W", "1000000000"]).contains("up to 16384"));
    assert!(with(&["--class", "1", "--seed", "-2"]).contains("18446744073709551615"));
    assert!(with(&["--class", "1", "-o", "a.gif"]).contains("a.gif"));
    assert!(with(&["--class", "1", "-o", "no/such/a.png"]).contains("no/such"));
    assert!(with(&["--class", "1", "--noise", "none.safetensors"]).contains("none.safetensors"));
    let sweep = ["sweep", "-m", "emoji-class", "--reference", ".", "-o", "no/such/a.csv"];
    assert!(TestCommand::new(&folder, sweep).failed().contains("no/such"));
    let train = ["train", "class", "--data", ".", "--set", "betas=[1, 1]"];
    assert!(TestCommand::new(&folder, train).failed().contains("betas"));
    let none = TestCommand::new(&folder, ["generate", "class", "-m", "nowhere"]).failed();
    assert!(none.contains("nowhere"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Drivers of GPUs crash when the process ends while they are at work on the weights.
#[test]
fn a_run_that_fails_with_an_open_model_ends_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let student = assets().join("models/emoji-4step");
    std::fs::copy(student.join("dit.safetensors"), folder.path().join("dit.safetensors"))
        .expect("copied");
    let mut bundle = json(&student.join("model.json"));
    let levels = &mut bundle["config"]["defaults"]["spacing"]["sigmas"];
    levels[1] = levels[0].clone();
    std::fs::write(folder.path().join("model.json"), bundle.to_string()).expect("written");
    for _ in 0..4 {
        let said = TestCommand::new(&folder, ["generate", "class", "-m", "."]).failed();
        assert!(said.contains("noise levels must be"), "{said}");
    }
}

/// A GPU that cannot hold what it is given: more than one of its buffers may, here. It needs one to be tested on.
#[test]
fn a_run_that_fails_for_memory_of_the_gpu_says_so() {
    if device_name() == "cpu" {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let many = ["generate", "class", "--fast", "--count", "3000", "--batch-size", "3000"];
    let said = TestCommand::new(&folder, many).args(["-o", "many.png"]).failed();
    assert!(said.contains("the GPU failed") && said.contains("fewer images at a time"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn devices_are_listed_without_a_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(TestCommand::new(&folder, ["devices"]).succeeded().starts_with("cpu"));
}

/// Whatever the CPU may use, the picture is the same to a level of its pixels.
#[test]
fn kernels_are_chosen_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let listed = |kernels| TestCommand::new(&folder, ["devices"]).kernels(kernels).succeeded();
    assert!(listed("off").contains("f32 burn, bf16 burn"), "{}", listed("off"));
    assert!(listed("portable").contains("f32 gemm, bf16 gemm"), "{}", listed("portable"));
    let generate = |kernels: &str| {
        TestCommand::new(&folder, ["generate", "class", "--fast", "--seed", "3", "-o"])
            .args([format!("{kernels}.png")])
            .on_cpu()
            .kernels(kernels)
    };
    let picture = |kernels: &str| {
        generate(kernels).succeeded();
        let path = folder.path().join(format!("{kernels}.png"));
        image::open(path).expect("a picture").into_rgb8()
    };
    let [off, portable, all] = ["off", "portable", "amx"].map(picture);
    for other in [portable, all] {
        let far = |(a, b): (&u8, &u8)| a.abs_diff(*b);
        assert!(off.iter().zip(other.iter()).map(far).max() <= Some(1));
    }
    for said in
        [TestCommand::new(&folder, ["devices"]).kernels("fast").failed(), generate("fast").failed()]
    {
        assert!(said.contains("`fast`") && said.contains("avx512-bf16"), "{said}");
    }
}

/// Ctrl-C ends a run within a step, with the exit code shells expect and no file.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = cases("dit-pipeline").remove(0);
    let elsewhere = tempfile::tempdir().expect("a folder");
    let preview = elsewhere.path().join("preview.png");
    let mut running =
        TestCommand::new(&folder, ["generate", "class", "-c", "1", "-n", "400", "--steps", "900"])
            .args(["-m", text(&golden), "--preview", text(&preview)])
            .on_cpu()
            .spawn();
    running.wait_until("preview of the first steps", || preview.exists());
    assert_eq!(running.interrupted().code(), Some(130));
    let files: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").collect();
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn half_precision_is_close_to_single() {
    let golden = cases("dit-pipeline").remove(0);
    // A DiT with an autoencoder, alone and with adapters of another patch size, and the flexible
    // magnitude-preserving network of pixels that ships.
    let folder = tempfile::tempdir().expect("a folder");
    let adapted = folder.path().join("adapted");
    let flexify =
        ["flexify", text(&golden), "--patches", "4", "--adapters", "2", "-o", text(&adapted)];
    TestCommand::new(&folder, flexify).succeeded();
    let models: [(&str, &[&str]); 4] = [
        (text(&golden), &[]),
        (text(&adapted), &["--weak-steps", "4"]),
        ("emoji-class", &[]),
        ("emoji-class", &["--weak-steps", "4"]),
    ];
    for (model, further) in models {
        let folder = tempfile::tempdir().expect("a folder");
        let mut pictures = Vec::new();
        for dtype in ["f32", "f16", "bf16", "int8"] {
            let name = format!("{dtype}.png");
            let ended =
                TestCommand::new(&folder, ["generate", "class", "-m", model, "-c", "1", "-s", "1"])
                    .args(["--steps", "8"])
                    .args(further)
                    .args(["--dtype", dtype, "-o", &name])
                    .ended();
            // A GPU without the type says so.
            if tolerance(0.0) > 0.0 && dtype != "f32" && ended.code == Some(1) {
                assert!(ended.error.contains(dtype));
                continue;
            }
            assert_eq!(ended.code, Some(0), "{}", ended.error);
            pictures.push(image::open(folder.path().join(name)).expect("a picture").into_rgb8());
        }
        for other in &pictures[1..] {
            let squares = pictures[0].iter().zip(other.iter());
            let error: f64 = squares.map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
            let psnr = 10.0 * (255f64.powi(2) / (error / pictures[0].len() as f64)).log10();
            println!("{model}: PSNR {psnr:.1} dB");
            assert!(psnr > 40.0, "{model}: {psnr}");
        }
    }
}

/// Python writes infinities into the schedulers of diffusers folders.
#[test]
fn a_folder_with_a_solver_and_infinities_opens() {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = cases("dit-pipeline").remove(0);
    let copy = |name: &str| {
        let target = folder.path().join(name);
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("created");
        std::fs::copy(golden.join(name), target).expect("copied");
    };
    copy("model_index.json");
    for part in ["transformer", "vae"] {
        copy(&format!("{part}/config.json"));
        copy(&format!("{part}/diffusion_pytorch_model.safetensors"));
    }
    std::fs::create_dir(folder.path().join("scheduler")).expect("created");
    let scheduler = r#"{"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000,
        "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "solver_order": 3,
        "lambda_min_clipped": -Infinity, "use_karras_sigmas": true}"#;
    std::fs::write(folder.path().join("scheduler/scheduler_config.json"), scheduler)
        .expect("written");
    let model = pyrograph::model::recognise(folder.path()).expect("recognised");
    assert_eq!(model.config.defaults.sampler.to_string(), "dpmpp_3m");
}

/// The 16 pictures of a default grid: tiles of 64 with a gap of 2 around each.
fn tiles(path: &Path) -> Vec<Vec<f32>> {
    let picture = image::open(path).expect("a picture").into_rgb8();
    assert_eq!(picture.dimensions(), (4 * 66 + 2, 4 * 66 + 2));
    let tile = |i: u32| {
        let (x, y) = (2 + i % 4 * 66, 2 + i / 4 * 66);
        image::imageops::crop_imm(&picture, x, y, 64, 64).to_image()
    };
    (0..16).map(|i| tile(i).into_raw().into_iter().map(f32::from).collect()).collect()
}

/// How far two tiles are apart, in levels.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32
}

#[test]
fn the_first_command_makes_distinct_pictures_of_every_class() {
    let folder = tempfile::tempdir().expect("a folder");
    TestCommand::new(&folder, ["generate", "class", "--seed", "3", "-o", "first.png"]).succeeded();
    let tiles = tiles(&folder.path().join("first.png"));
    for (i, tile) in tiles.iter().enumerate() {
        let mean = tile.iter().sum::<f32>() / tile.len() as f32;
        let spread = tile.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / tile.len() as f32;
        assert!(spread.sqrt() > 10.0, "picture {i} is flat");
        for (j, other) in tiles[..i].iter().enumerate() {
            assert!(apart(tile, other) > 5.0, "pictures {i} and {j} are the same");
        }
    }
}

/// From the same noise the shipped student makes the pictures of its teacher.
#[test]
fn the_fast_model_follows_its_teacher() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["generate", "class", "--seed", "3", "-o"];
    let generate = |extra: &[&str]| TestCommand::new(&folder, base).args(extra);
    generate(&["first.png"]).succeeded();
    generate(&["fast.png", "--fast"]).succeeded();
    let settings = TestCommand::new(&folder, ["metadata", "fast.png"]).succeeded();
    assert!(settings.contains("emoji-4step"), "{settings}");
    let teacher = tiles(&folder.path().join("first.png"));
    let student = tiles(&folder.path().join("fast.png"));
    let nearest = |tile: &[f32]| {
        (0..16).min_by(|i, j| apart(tile, &teacher[*i]).total_cmp(&apart(tile, &teacher[*j])))
    };
    let followed = (0..16).filter(|i| nearest(&student[*i]) == Some(*i)).count();
    assert!(followed >= 15, "{followed} of 16 pictures are their teacher's");
    generate(&["{seed}.png", "--fast", "-n", "2"]).succeeded();
    assert!(folder.path().join("3.png").exists() && folder.path().join("4.png").exists());
    generate(&["x.png", "--fast", "-m", "emoji-class"]).misused();
}
