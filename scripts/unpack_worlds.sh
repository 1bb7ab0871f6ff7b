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
    found=
    for files in '*.pk3' '*/torcs/tracks/*' '*/torcs/cars/*' '*/torcs/data/textures/*' \
        '*/copyright'; do
        # tar fails if a package has no file of this kind.
        if dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$folder" --wildcards "$files" 2>/dev/null; then
            [ "$files" = '*/copyright' ] || found=yes
        fi
    done
    [ -n "$found" ] || echo "$package: no maps and no tracks" >&2
done
find "$folder" -name '*.pk3' -o -name '*.acc' | sort
