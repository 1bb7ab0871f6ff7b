"""Palettes for depth pictures: 256 colours each, without matplotlib.

The tables are those of matplotlib's colour maps of the same names: Spectral by Cynthia Brewer
(ColorBrewer, Apache-2.0), inferno, magma, plasma and viridis by Nathaniel Smith and Stefan van der
Walt (CC0), turbo by Anton Mikhailov (Apache-2.0).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from .optional import why_no_module

if TYPE_CHECKING:
    import numpy as np

GRAY = "gray"


def colorize(values: np.ndarray, palette: str = "Spectral_r") -> np.ndarray:
    """Colours values in 0..1.

    Args:
        values: Floats of any shape; values outside 0..1 get the colour of the nearer end.
        palette: One of `PALETTES`, or a name that `check_palette` accepts.

    Returns:
        RGB, uint8, of shape ``(*values.shape, 3)``.

    Raises:
        ValueError: If the palette is unknown.
    """
    import numpy as np

    check_palette(palette)
    # As in matplotlib: 256 bins of equal width, the last one closed.
    index = np.clip(np.floor(np.asarray(values, np.float64) * 256), 0, 255).astype(np.uint8)
    return _table(palette)[index]


def check_palette(palette: str) -> None:
    """Checks that a palette is known: one of `PALETTES`, of matplotlib or of cmap.

    Raises:
        ValueError: If it is unknown.
    """
    if palette not in PALETTES:
        _table(palette)


@functools.cache
def _table(palette: str) -> np.ndarray:
    """The 256 colours of a palette, (256, 3) uint8."""
    import numpy as np

    if palette == GRAY:
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if palette in _TABLES:
        return np.frombuffer(bytes.fromhex(_TABLES[palette]), dtype=np.uint8).reshape(256, 3)
    missing = []
    for package, colors_of in (("matplotlib", _of_matplotlib), ("cmap", _of_cmap)):
        if why := why_no_module(package):
            missing.append(why)
        elif (colors := colors_of(palette)) is not None:
            return (colors[:, :3] * 255).round().astype(np.uint8)
    also = ", and the names of matplotlib and cmap"
    if missing:
        also = f"; names of matplotlib and cmap need these packages ({', '.join(missing)})"
    raise ValueError(f"no palette {palette!r}; there are: {', '.join(PALETTES)}{also}")


def _of_matplotlib(palette: str) -> np.ndarray | None:
    import matplotlib
    import numpy as np

    if palette not in matplotlib.colormaps:
        return None
    return matplotlib.colormaps[palette](np.arange(256) / 255)


def _of_cmap(palette: str) -> np.ndarray | None:
    import cmap
    import numpy as np

    try:
        return cmap.Colormap(palette)(np.arange(256) / 255)
    except (ValueError, TypeError):
        return None


# fmt: off
_TABLES = {
    "Spectral_r": (
        "5e4fa25c51a35a53a45855a55757a6555aa7535ca8515ea95060aa4e63ab4c65ac4b67ad4969ae476caf"
        "456eb04470b14272b24075b43e77b53d79b63b7bb7397db83880b93682ba3484bb3286bc3389bc358bbb"
        "378dba398fb93b92b83d94b73f96b64199b5439bb5459db4479fb349a2b24ba4b14da6b04fa8af51abae"
        "53adad55afac57b2ab59b4aa5bb6a95db8a85fbba761bda663bfa566c2a568c3a46bc4a46ec5a470c6a4"
        "73c7a476c8a478c9a47bcaa47ecba481cca483cda486cea489cfa48bd0a48ed1a491d2a494d4a496d5a4"
        "99d6a49cd7a49ed8a4a1d9a4a4daa4a6dba4a9dca4acdda3aedea3b0dfa2b3e0a2b5e1a1b7e2a1bae3a0"
        "bce4a0bee5a0c0e59fc3e69fc5e79ec7e89ecae99dccea9dceeb9cd1ec9cd3ed9bd5ee9bd8ef9adaf09a"
        "dcf199dff299e1f398e3f498e6f598e6f599e7f59be8f69ce9f69eeaf69febf7a1ecf7a2edf8a4eef8a5"
        "eff8a7f0f9a8f1f9aaf2faabf3faadf4faaef5fbb0f6fbb2f7fcb3f8fcb5f9fcb6fafdb8fbfdb9fcfebb"
        "fdfebcfefebefefebdfefdbbfefbb9fefab7fef9b5fef8b3fef7b1fef5affef4adfef3abfef2a9fef1a7"
        "feefa5feeea3feeda1feec9ffeea9dfee99bfee899fee797fee695fee493fee391fee28ffee18dfee08b"
        "fdde89fddc87fdda86fdd884fdd682fdd481fdd27ffdd07dfdce7cfdcc7afdca78fdc877fdc675fdc473"
        "fdc272fdc070fdbe6ffdbc6dfdba6bfdb86afdb668fdb466fdb265fdb063fdae61fcac60fcaa5ffca75e"
        "fba55cfba25bfb9f5afa9d59fa9a58fa9857f99555f99354f89053f88e52f88b51f7894ff7864ef7834d"
        "f6814cf67e4bf67c4af57948f57747f57446f47245f46f44f46d43f26b43f16943f06744ef6544ed6345"
        "ec6145eb6046ea5e46e95c47e75a47e65848e55648e45549e25349e1514ae04f4adf4d4bde4b4bdc494b"
        "db484cda464cd9444dd8424dd6404ed53e4ed33c4ed13a4ecf384dcd354dcb334cc9304cc62e4bc42c4b"
        "c2294ac0274abe2449bc2249ba2048b71d48b51b47b31847b11646af1446ad1145aa0f45a80c44a60a44"
        "a40843a20543a003429e0142"
    ),
    "inferno": (
        "00000300000400000601000701010901010b02010e02021003021204031404031605041806041b07051d"
        "08061f0906210a07230b07260d08280e082a0f092d10092f120a32130a34140b36160b39170b3b190b3e"
        "1a0b401c0c431d0c451f0c47200c4a220b4c240b4e260b50270b52290b542b0a562d0a582e0a5a300a5c"
        "32095d34095f3509603709613909623b09643c09653e0966400966410967430a68450a69460a69480b6a"
        "4a0b6a4b0c6b4d0c6b4f0d6c500d6c520e6c530e6d550f6d570f6d58106d5a116d5b116e5d126e5f126e"
        "60136e62146e63146e65156e66156e68166e6a176e6b176e6d186e6e186e70196e72196d731a6d751b6d"
        "761b6d781c6d7a1c6d7b1d6c7d1d6c7e1e6c801f6b811f6b83206b85206a86216a88216a8922698b2269"
        "8d23698e24689024689125679325679526669626669827659928649b28649c29639e2963a02a62a12b61"
        "a32b61a42c60a62c5fa72d5fa92e5eab2e5dac2f5cae305baf315bb1315ab23259b43358b53357b73456"
        "b83556ba3655bb3754bd3753be3852bf3951c13a50c23b4fc43c4ec53d4dc73e4cc83e4bc93f4acb4049"
        "cc4148cd4247cf4446d04544d14643d24742d44841d54940d64a3fd74b3ed94d3dda4e3bdb4f3adc5039"
        "dd5238de5337df5436e05634e25733e35832e45a31e55b30e65c2ee65e2de75f2ce8612be9622aea6428"
        "eb6527ec6726ed6825ed6a23ee6c22ef6d21f06f1ff0701ef1721df2741cf2751af37719f37918f47a16"
        "f57c15f57e14f68012f68111f78310f7850ef8870df8880cf88a0bf98c09f98e08f99008fa9107fa9306"
        "fa9506fa9706fb9906fb9b06fb9d06fb9e07fba007fba208fba40afba60bfba80dfbaa0efbac10fbae12"
        "fbb014fbb116fbb318fbb51afbb71cfbb91efabb21fabd23fabf25fac128f9c32af9c52cf9c72ff8c931"
        "f8cb34f8cd37f7cf3af7d13cf6d33ff6d542f5d745f5d948f4db4bf4dc4ff3de52f3e056f3e259f2e45d"
        "f2e660f1e864f1e968f1eb6cf1ed70f1ee74f1f079f1f27df2f381f2f485f3f689f4f78df5f891f6fa95"
        "f7fb99f9fc9dfafda0fcfea4"
    ),
    "magma": (
        "00000300000400000601000701010901010b02020d02020f03031104031304041505041706051907051b"
        "08061d09071f0a07220b08240c09260d0a280e0a2a0f0b2c100c2f110c31120d33140d35150e38160e3a"
        "170f3c180f3f1a10411b10441c10461e10491f114b20114d2211502311522511552611572811592a115c"
        "2b115e2d10602f1062301065321067341068350f6a370f6c390f6e3b0f6f3c0f713e0f72400f73420f74"
        "430f75450f76470f774810784a10794b10794d117a4f117b50127b52127c53137c55137d57147d58157e"
        "5a157e5b167e5d177e5e177f60187f61187f63197f651a80661a80681b80691c806b1c806c1d806e1e81"
        "6f1e81711f81731f817420817621817721817922817a22817c23817e24817f2481812581822581842681"
        "8526818727818928818a28818c29808d29808f2a80912a80922b80942b80952c80972c7f992d7f9a2d7f"
        "9c2e7f9e2e7e9f2f7ea12f7ea3307ea4307da6317da7317da9327cab337cac337bae347bb0347bb1357a"
        "b3357ab53679b63679b83778b93778bb3877bd3977be3976c03a75c23a75c33b74c53c74c63c73c83d72"
        "ca3e72cb3e71cd3f70ce4070d0416fd1426ed3426dd4436dd6446cd7456bd9466ada4769dc4869dd4968"
        "de4a67e04b66e14c66e24d65e44e64e55063e65162e75262e85461ea5560eb5660ec585fed595fee5b5e"
        "ee5d5def5e5df0605df1615cf2635cf3655cf3675bf4685bf56a5bf56c5bf66e5bf6705bf7715bf7735c"
        "f8755cf8775cf9795cf97b5df97d5dfa7f5efa805efa825ffb8460fb8660fb8861fb8a62fc8c63fc8e63"
        "fc9064fc9265fc9366fd9567fd9768fd9969fd9b6afd9d6bfd9f6cfda16efda26ffda470fea671fea873"
        "feaa74feac75feae76feaf78feb179feb37bfeb57cfeb77dfeb97ffebb80febc82febe83fec085fec286"
        "fec488fec689fec78bfec98dfecb8efdcd90fdcf92fdd193fdd295fdd497fdd698fdd89afdda9cfddc9d"
        "fddd9ffddfa1fde1a3fce3a5fce5a6fce6a8fce8aafceaacfcecaefceeb0fcf0b1fcf1b3fcf3b5fcf5b7"
        "fbf7b9fbf9bbfbfabdfbfcbf"
    ),
    "plasma": (
        "0c078610078713068915068a18068b1b068c1d068d1f058e21058f2305902505912705922905932b0594"
        "2d04942f04953104963304973404983604983804993a049a3b039a3d039b3f039c40039c42039d44039e"
        "45039e47029f49029f4a02a04c02a14e02a14f02a25101a25201a35401a35601a35701a45901a45a00a5"
        "5c00a55e00a55f00a66100a66200a66400a76500a76700a76800a76a00a76c00a86d00a86f00a87000a8"
        "7200a87300a87500a87601a87801a87901a87b02a87c02a77e03a77f03a78104a78204a78405a68506a6"
        "8607a68807a58908a58b09a48c0aa48e0ca48f0da3900ea3920fa29310a19511a19612a09713a099149f"
        "9a159e9b179e9d189d9e199c9f1a9ba01b9ba21c9aa31d99a41e98a51f97a72197a82296a92395aa2494"
        "ac2593ad2692ae2791af2890b02a8fb12b8fb22c8eb42d8db52e8cb62f8bb7308ab83289b93388ba3487"
        "bb3586bc3685bd3784be3883bf3982c03b81c13c80c23d80c33e7fc43f7ec5407dc6417cc7427bc8447a"
        "c94579ca4678cb4777cc4876cd4975ce4a75cf4b74d04d73d14e72d14f71d25070d3516fd4526ed5536d"
        "d6556dd7566cd7576bd8586ad95969da5a68db5b67dc5d66dc5e66dd5f65de6064df6163df6262e06461"
        "e16560e26660e3675fe3685ee46a5de56b5ce56c5be66d5ae76e5ae87059e87158e97257ea7356ea7455"
        "eb7654ec7754ec7853ed7952ed7b51ee7c50ef7d4fef7e4ef0804df0814df1824cf2844bf2854af38649"
        "f38748f48947f48a47f58b46f58d45f68e44f68f43f69142f79241f79341f89540f8963ff8983ef9993d"
        "f99a3cfa9c3bfa9d3afa9f3afaa039fba238fba337fba436fca635fca735fca934fcaa33fcac32fcad31"
        "fdaf31fdb030fdb22ffdb32efdb52dfdb62dfdb82cfdb92bfdbb2bfdbc2afdbe29fdc029fdc128fdc328"
        "fdc427fdc626fcc726fcc926fccb25fccc25fcce25fbd024fbd124fbd324fad524fad624fad824f9d924"
        "f9db24f8dd24f8df24f7e024f7e225f6e425f6e525f5e726f5e926f4ea26f3ec26f3ee26f2f026f2f126"
        "f1f326f0f525f0f623eff821"
    ),
    "viridis": (
        "44015444025544035745055845065a45085b46095c460b5e460c5f460e61470f62471163471265471466"
        "47156747166947186a48196b481a6c481c6e481d6f481e70482071482172482273482374472575472676"
        "472777472878472a79472b7a472c7b462d7c462f7c46307d46317e45327f45347f453580453681443781"
        "443982433a83433b83433c84423d84423e854240854141864142864043874044873f45873f47883e4888"
        "3e49893d4a893d4b893d4c893c4d8a3c4e8a3b508a3b518a3a528b3a538b39548b39558b38568b38578c"
        "37588c37598c365a8c365b8c355c8c355d8c345e8d345f8d33608d33618d32628d32638d31648d31658d"
        "31668d30678d30688d2f698d2f6a8d2e6b8e2e6c8e2e6d8e2d6e8e2d6f8e2c708e2c718e2c728e2b738e"
        "2b748e2a758e2a768e2a778e29788e29798e287a8e287a8e287b8e277c8e277d8e277e8e267f8e26808e"
        "26818e25828e25838d24848d24858d24868d23878d23888d23898d22898d228a8d228b8d218c8d218d8c"
        "218e8c208f8c20908c20918c1f928c1f938b1f948b1f958b1f968b1e978a1e988a1e998a1e998a1e9a89"
        "1e9b891e9c891e9d881e9e881e9f881ea0871fa1871fa2861fa38620a48520a58521a68521a78422a784"
        "23a88323a98224aa8225ab8126ac8127ad8028ae7f29af7f2ab07e2bb17d2cb17d2eb27c2fb37b30b47a"
        "32b57a33b67935b77836b87738b97639b9763bba753dbb743ebc7340bd7242be7144be7045bf6f47c06e"
        "49c16d4bc26c4dc26b4fc36951c46853c56755c66657c66559c7645bc8625ec96160c96062ca5f64cb5d"
        "67cc5c69cc5b6bcd596dce5870ce5672cf5574d05477d05279d1517cd24f7ed24e81d34c83d34b86d449"
        "88d5478bd5468dd64490d64392d74195d73f97d83e9ad83c9dd93a9fd938a2da37a5da35a7db33aadb32"
        "addc30afdc2eb2dd2cb5dd2bb7dd29bade27bdde26bfdf24c2df22c5df21c7e01fcae01ecde01dcfe11c"
        "d2e11bd4e11ad7e219dae218dce218dfe318e1e318e4e318e7e419e9e419ece41aeee51bf1e51cf3e51e"
        "f6e61ff8e621fae622fde724"
    ),
    "turbo": (
        "30123b31154232184a341b51351e5836215f37236538266c3929723a2c793b2f7f3c32853c358b3d3791"
        "3e3a963f3d9c4040a14043a64145ab4148b0424bb5434eba4350be4353c24456c74458cb455bce455ed2"
        "4560d64563d94666dd4668e0466be3466de64670e84673eb4675ed4678f0467af2467df4467ff64682f8"
        "4584f94587fb4589fc448cfd438efd4291fe4193fe4096fe3f98fe3e9bfe3c9dfd3ba0fc39a2fc38a5fb"
        "36a8f934aaf833acf631aff52fb1f32db4f12bb6ef2ab9ed28bbeb26bde925c0e623c2e421c4e120c6df"
        "1ec9dc1dcbda1ccdd71bcfd41ad1d219d3cf18d5cc18d7ca17d9c717dac417dcc217debf18e0bd18e1ba"
        "19e3b81ae4b61be5b41de7b11ee8af20e9ac22eba924eca627eda329eea02cef9d2ff09a32f19735f394"
        "38f4913bf48d3ff58a42f68746f7834af8804df97c51f97955fa7659fb725dfb6f61fc6c65fc6869fd65"
        "6dfd6271fd5f74fe5c78fe597cfe5680fe5384fe5087fe4d8bfe4b8efe4892fe4695fe4498fe429bfd40"
        "9efd3ea1fc3da4fc3ba6fb3aa9fb39acfa37aef937b1f836b3f835b6f735b9f534bbf434bef334c0f233"
        "c3f133c5ef33c8ee33caed33cdeb34cfea34d1e834d4e735d6e535d8e335dae236dde036dfde36e1dc37"
        "e3da37e5d838e7d738e8d538ead339ecd139edcf39efcd39f0cb3af2c83af3c63af4c43af6c23af7c039"
        "f8be39f9bc39f9ba38fab737fbb537fbb336fcb035fcae34fdab33fda932fda631fda330fea12ffe9e2e"
        "fe9b2dfe982cfd952bfd9229fd8f28fd8c27fc8926fc8624fb8323fb8022fa7d20fa7a1ff9771ef8741c"
        "f7711bf76e1af66b18f56817f46516f36315f26014f15d13ef5a11ee5810ed550fec520eea500de94d0d"
        "e84b0ce6490be5460ae3440ae24209e04008de3e08dd3c07db3a07d93806d73606d63405d43205d23005"
        "d02f04ce2d04cb2b03c92903c72803c52602c32402c02302be2102bb1f01b91e01b61c01b41b01b11901"
        "ae1801ac1601a91501a61401a31201a011019d10019a0e01970d01940c01910b018e0a018b0901870801"
        "8407018106027d05027a0402"
    ),
}
# fmt: on

PALETTES: tuple[str, ...] = (*_TABLES, GRAY)
"""Names of the palettes that need no other package."""
