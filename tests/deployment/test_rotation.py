"""A site's certificate is renewed, and its settings change, while it runs."""

from __future__ import annotations

import pytest

from scripts.loopback import Loopback, aiseeme, aiseeme_site, ran, until
from tests.conftest import write_pictures
from tests.deployment.hospitals import FEDERATION, needs_nginx

pytestmark = [pytest.mark.deployment, needs_nginx]


def test_a_running_site_takes_up_its_renewed_certificate_and_its_changed_settings(tmp_path):
    pictures = {"alpha": write_pictures(tmp_path / "pictures" / "alpha", 12)}
    with Loopback(tmp_path, FEDERATION, pictures) as federation:
        federation.start()
        alpha = federation.hospitals["alpha"]
        request, admission = tmp_path / "again.request.pem", tmp_path / "again.admission.json"
        invitation = tmp_path / "again.invitation.json"
        ran(aiseeme("site", "rotate", "alpha", "--federation", federation.home, "--out", invitation))
        ran(aiseeme_site("join", invitation, "--home", alpha.home, "--out", request))
        ran(aiseeme("site", "sign", request, "--federation", federation.home, "--out", admission))
        ran(aiseeme_site("join", admission, "--home", alpha.home))
        until(lambda: "node and runner are started again" in alpha.service.says(), "the certificate is taken up")
        until(lambda: alpha.service.says().count("ready on cpu") == 2, "the runner is ready again")
        federation.wait_connected(alpha)
        assert aiseeme_site("check", "--home", alpha.home).returncode == 0

        (alpha.home / "site.toml").write_text('[policy]\ntasks = ["no-such-task"]\n')
        until(lambda: "the changed settings are not used" in alpha.service.says(), "the mistake is told")
        assert alpha.service.says().count("node and runner are started again") == 1
        (alpha.home / "site.toml").write_text('[policy]\ntasks = ["rotation"]\n')
        until(lambda: alpha.service.says().count("node and runner are started again") == 2, "the settings are taken up")
        assert alpha.service.stop() == 0
