"""A ROS 2 node: `python ros2_node.py --ros-args -p model:=nano -r image:=/camera/image_raw`.

It subscribes to `image` and publishes `depth` (32FC1): metres of a metric model, else disparity
(large is near). `camera_info` gives the focal length that Depth Anything 3's metric model needs.
"""

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

import dafast

ORDER = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0)}


def to_rgb(message: Image) -> np.ndarray:
    """The pixels of a message, (H, W, 3) uint8."""
    channels = 1 if message.encoding == "mono8" else 3 + message.encoding.endswith("a8")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    return np.repeat(pixels, 3, 2) if channels == 1 else pixels[..., ORDER[message.encoding]]


class DepthNode(Node):
    """Predicts each image; one that arrives meanwhile waits, and older ones are dropped."""

    def __init__(self) -> None:
        super().__init__("dafast_depth")
        name = self.declare_parameter("model", "nano").value
        self.model = dafast.DepthAnything.from_pretrained(name)
        self.intrinsics: tuple[float, ...] | None = None
        self.publisher = self.create_publisher(Image, "depth", 1)
        self.create_subscription(CameraInfo, "camera_info", self.on_camera, 1)
        self.create_subscription(Image, "image", self.on_image, 1)

    def on_camera(self, message: CameraInfo) -> None:
        self.intrinsics = (message.k[0], message.k[4], message.k[2], message.k[5])

    def on_image(self, message: Image) -> None:
        result = self.model.predict(to_rgb(message), intrinsics=self.intrinsics, keep_image=False)
        answer = Image(header=message.header, height=message.height, width=message.width)
        answer.encoding, answer.step = "32FC1", 4 * message.width
        answer.data = result.values.tobytes()
        self.publisher.publish(answer)


if __name__ == "__main__":
    rclpy.init()
    rclpy.spin(DepthNode())
