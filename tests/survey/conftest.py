"""Browser tests of the survey use the one Chromium of the session."""

from helpers.browser import chromium as chromium
