#!/bin/sh
# Unpacks the maps and models of games from Debian packages, for `dafast synth --worlds FOLDER`.
#   apt-get download openarena-081-maps openarena-081-textures openarena-081-players \
#       openarena-081-misc openarena-085-data openarena-088-data nexuiz-data nexuiz-textures \
#       torcs-data
#   scripts/unpack_worlds.sh worlds *.deb
# Only archives of maps and models, tracks, cars and the packages' licenses are kept.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: $0 FOLDER PACKAGE.deb..." >&2
    exit 2
fi
folder=$1
shift
mkdir -p "$folder"
for package in "$@"; do
    # All patterns in one pass, because unpacking takes minutes; tar fails if one of them has no
    # file, which is the rule.
    kept=$(dpkg-deb --fsys-tarfile "$package" |
        tar -xv -C "$folder" --wildcards '*.pk3' '*/torcs/tracks/*' '*/torcs/cars/*' \
            '*/torcs/data/textures/*' '*/copyright' 2>/dev/null) || true
    echo "$kept" | grep -v '/copyright$' | grep -q . ||
        echo "$package: no maps, tracks or cars" >&2
done
find "$folder" -name '*.pk3' -o -name '*.acc' | sort
