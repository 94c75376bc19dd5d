use super::*;
use crate::image::tar::Tar;
use crate::testing::{Item, layer};

fn apply(tree: &mut Tree, index: u32, items: &[Item]) -> Result<(), String> {
    let bytes = layer(items);
    let mut tar = Tar::new(bytes.as_slice());
    tree.begin_layer(index);
    while let Some(entry) = tar.next_entry().unwrap() {
        tree.apply(&entry)?;
    }
    Ok(())
}

fn tree(layers: &[&[Item]]) -> Tree {
    let mut tree = Tree::new();
    for (index, items) in layers.iter().enumerate() {
        apply(&mut tree, index as u32, items).unwrap();
    }
    tree
}

/// All paths, sorted; a directory ends in `/`, a link shows its target.
fn paths(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![(String::new(), Id::ROOT)];
    while let Some((path, dir)) = todo.pop() {
        for (name, child) in tree.children(dir).unwrap() {
            let path = format!("{path}{}", String::from_utf8_lossy(name));
            match &tree.node(child.node).body {
                Body::Directory { .. } => {
                    out.push(format!("{path}/"));
                    todo.push((format!("{path}/"), child.node));
                }
                Body::Symlink(target) => out.push(format!("{path}->{}", String::from_utf8_lossy(target))),
                _ => out.push(path),
            }
        }
    }
    out.sort();
    out
}

fn file(name: &str) -> Item {
    Item::file(name, b"x")
}

#[test]
fn a_whiteout_hides_a_file_a_directory_and_nothing_else() {
    let lower = [file("a"), file("ab"), file("d/x"), file("d/e/y"), file("k/z")];
    let upper = [file(".wh.a"), file(".wh.d"), file("k/.wh.none"), file("none/.wh.z")];
    assert_eq!(paths(&tree(&[&lower, &upper])), ["ab", "k/", "k/z"]);
}

#[test]
fn a_whiteout_does_not_touch_its_own_layer_in_either_order() {
    let lower = [file("d/old"), file("f")];
    let before = [file(".wh.d"), file(".wh.f"), Item::dir("d/"), file("d/new"), file("f")];
    let after = [Item::dir("d/"), file("d/new"), file("f"), file(".wh.d"), file(".wh.f")];
    for upper in [before, after] {
        assert_eq!(paths(&tree(&[&lower, &upper])), ["d/", "d/new", "f"]);
    }
}

#[test]
fn an_opaque_directory_hides_all_lower_children_in_either_order() {
    let lower = [file("d/old"), file("d/e/old"), file("d/e/f/old"), file("k")];
    let opaque = file("d/.wh..wh..opq");
    let before = [Item::dir("d/"), opaque.clone(), file("d/e/new")];
    let after = [Item::dir("d/"), file("d/e/new"), opaque];
    for upper in [before, after] {
        assert_eq!(paths(&tree(&[&lower, &upper])), ["d/", "d/e/", "d/e/new", "k"]);
    }
}

#[test]
fn what_a_whiteout_hid_may_come_back_in_a_later_layer() {
    let layers: [&[Item]; 3] = [&[file("d/a")], &[file(".wh.d")], &[file("d/b")]];
    assert_eq!(paths(&tree(&layers)), ["d/", "d/b"]);
}

#[test]
fn aufs_leftovers_are_passed_over_and_a_whiteout_of_nothing_is_refused() {
    assert_eq!(paths(&tree(&[&[file(".wh..wh.plnk"), file(".wh..wh.aufs")]])), [] as [&str; 0]);
    for bad in [".wh.", ".wh..", ".wh..."] {
        assert!(apply(&mut Tree::new(), 0, &[file(bad)]).is_err(), "{bad}");
    }
}

#[test]
fn a_hidden_name_of_a_hard_link_leaves_the_others() {
    let lower = [file("a"), Item::hard_link("b", "a")];
    assert_eq!(paths(&tree(&[&lower, &[file(".wh.a")]])), ["b"]);
    // A new name of a lower file belongs to the layer that gives it.
    let upper = [Item::hard_link("c", "a"), file(".wh.c"), file(".wh.a")];
    assert_eq!(paths(&tree(&[&lower, &upper])), ["b", "c"]);
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    let lower =
        [Item::dir("a/"), file("a/x"), file("b"), Item::symlink("c", "b"), Item::dir("d/"), file("d/x")];
    let upper = [file("a"), Item::dir("b/"), Item::dir("c/"), Item::dir("d/").mode(0o700)];
    for layers in [vec![&lower[..], &upper[..]], vec![&[lower.to_vec(), upper.to_vec()].concat()[..]]] {
        let tree = tree(&layers);
        assert_eq!(paths(&tree), ["a", "b/", "c/", "d/", "d/x"]);
        let d = tree.child(Id::ROOT, b"d").unwrap();
        assert_eq!(tree.node(d.node).mode, 0o700);
    }
}

#[test]
fn missing_parents_and_odd_spellings_are_one_path() {
    let items = [file("./a/./b//c"), file("/a/d"), file("a/x/../e"), file("a//"), file("a/f")];
    // "a//" is a directory in V7's spelling.
    assert_eq!(paths(&tree(&[&items])), ["a/", "a/b/", "a/b/c", "a/d", "a/e", "a/f"]);
}

#[test]
fn a_link_of_the_same_layer_is_followed_inside_the_root() {
    let items = [
        Item::dir("usr/lib/"),
        Item::symlink("lib", "usr/lib"),
        Item::symlink("abs", "/usr"),
        Item::symlink("up", "../../../../usr"),
        file("lib/a"),
        file("abs/b"),
        file("up/c"),
        file("new/d"),
    ];
    let expected = [
        "abs->/usr",
        "lib->usr/lib",
        "new/",
        "new/d",
        "up->../../../../usr",
        "usr/",
        "usr/b",
        "usr/c",
        "usr/lib/",
        "usr/lib/a",
    ];
    assert_eq!(paths(&tree(&[&items])), expected);
}

#[test]
fn a_link_of_a_lower_layer_is_replaced_as_an_overlay_does() {
    let lower = [file("usr/lib/a"), Item::symlink("lib", "usr/lib"), file("f")];
    let upper = [file("lib/b"), file("f/g")];
    assert_eq!(
        paths(&tree(&[&lower, &upper])),
        ["f/", "f/g", "lib/", "lib/b", "usr/", "usr/lib/", "usr/lib/a"]
    );
}

#[test]
fn a_hard_link_finds_its_target_through_links_and_in_lower_layers() {
    let lower = [file("usr/lib/a"), Item::symlink("lib", "usr/lib")];
    let tree = tree(&[&lower, &[Item::hard_link("b", "lib/a"), Item::hard_link("l", "/lib")]]);
    assert_eq!(paths(&tree), ["b", "l->usr/lib", "lib->usr/lib", "usr/", "usr/lib/", "usr/lib/a"]);
}

#[test]
fn hostile_entries_are_refused_with_a_reason() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(2500);
    let endless: Vec<Item> = vec![Item::symlink("l", "l"), file("l/x")];
    let circle = vec![Item::symlink("a", "b"), Item::symlink("b", "a"), file("a/x")];
    let cases: Vec<(&str, Vec<Item>)> = vec![
        ("the path leaves the root", vec![file("../etc/passwd")]),
        ("the path leaves the root", vec![file("a/../../etc/passwd")]),
        ("a path with a NUL", vec![file("a\0b")]),
        ("a name is longer than 255 bytes", vec![file(&long)]),
        ("the path is longer than 4096 bytes", vec![file(&deep)]),
        ("too many symbolic links on its path", endless),
        ("too many symbolic links on its path", circle),
        ("a name on its path is longer than 255 bytes", vec![Item::symlink("l", &long), file("l/x")]),
        ("a part of its path is not a directory", vec![file("f"), file("f/x")]),
        ("the root must be a directory", vec![file(".")]),
        ("a hard link to \"none\", which is not there", vec![Item::hard_link("a", "none")]),
        ("a hard link to a directory", vec![Item::dir("d/"), Item::hard_link("a", "d")]),
        ("a hard link to the root", vec![Item::hard_link("a", "/")]),
        ("its target: the path leaves the root", vec![Item::hard_link("a", "../../x")]),
        ("a symbolic link needs a target without NUL", vec![Item::symlink("a", "")]),
        ("the device 4096:0 does not exist on Linux", vec![Item::device("d", true, 4096, 0)]),
        (
            "its extended attributes have 70014 bytes, and 60000 are possible",
            vec![file("f").xattr("user.x", &[0; 70_000])],
        ),
    ];
    for (why, items) in cases {
        assert_eq!(apply(&mut Tree::new(), 0, &items).unwrap_err(), why);
    }
}

#[test]
fn a_path_that_grows_through_links_ends_at_the_limit() {
    let mut items = vec![Item::dir(&"d/".repeat(1500)), Item::symlink("s", &"d/".repeat(1500))];
    items.push(file(&format!("s/{}x", "e/".repeat(1500))));
    assert_eq!(apply(&mut Tree::new(), 0, &items).unwrap_err(), "its path has more than 2048 parts");
}

#[test]
fn overlayfs_own_attributes_do_not_get_in() {
    let item = file("f").xattr("trusted.overlay.redirect", b"/x").xattr("user.b", b"").xattr("user.a", b"1");
    let tree = tree(&[&[item]]);
    let node = tree.node(tree.child(Id::ROOT, b"f").unwrap().node);
    let names: Vec<_> = node.xattrs.as_ref().unwrap().iter().map(|(name, _)| name.to_vec()).collect();
    assert_eq!(names, [b"user.a", b"user.b"]);
}
